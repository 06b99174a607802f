# Everything is installed into VENV from the lock files; a second run installs nothing.

VENV ?= .venv
ARGS ?=
PYTHON := $(VENV)/bin/python
PIP = $(PYTHON) -m pip install --quiet --disable-pip-version-check
LOCKS := requirements.lock requirements-build.lock
LOCK = $(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header
UV ?= uv

# The first interpreter that is new enough; a name may exist and still not run.
BASE = $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$name && break; done)

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench lock clean

help:  ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: $(VENV)/.installed  ## install what is needed and start the gateway; ARGS="--port 9000"
	@exec $(PYTHON) -m proxy $(ARGS)

# More processes than cores: a test waits, for a child or a clock, more than it computes.
test: $(VENV)/.installed-dev  ## install what the tests need and run them; ARGS="-k stream"
	$(PYTHON) -m pytest --numprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev  ## check style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(VENV)/.installed-dev  ## put the style right where that can be done by itself
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(VENV)/.installed-dev  ## measure speed and size; see benchmarks/README.md
	$(PYTHON) benchmarks/run.py $(ARGS)

lock:  ## write the lock files anew (needs uv)
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra test --constraints requirements.lock --output-file requirements-dev.lock
	echo hatchling | $(subst pyproject.toml,-,$(LOCK)) --constraints requirements-dev.lock \
		--output-file requirements-build.lock

clean:  ## remove what was installed and built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(PYTHON):
	@test -n "$(BASE)" || { echo "Tollkeeper needs Python 3.11 or later." >&2; exit 1; }
	$(BASE) -m venv $(VENV)

$(VENV)/.installed: $(LOCKS) pyproject.toml | $(PYTHON)
	$(PIP) --require-hashes $(LOCKS:%=-r %)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml | $(PYTHON)
	$(PIP) --require-hashes -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.installed $@
