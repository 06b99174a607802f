# The first stage builds a virtual environment and the second one carries only that.
FROM python:3.13-slim AS build

WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements-build.lock \
    && python -m venv --without-pip /opt/tollkeeper \
    && /opt/build/bin/pip --python /opt/tollkeeper/bin/python install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY proxy proxy
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/tollkeeper/bin/python install --no-deps /dist/*.whl


FROM python:3.13-slim

RUN useradd --system --uid 10001 --no-create-home tollkeeper \
    && mkdir -p /data \
    && chown tollkeeper /data
COPY --from=build /opt/tollkeeper /opt/tollkeeper

# With no key given one is made at the first start, kept in /data and printed once.
ENV PATH=/opt/tollkeeper/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TOLLKEEPER_SERVER__HOST=0.0.0.0 \
    TOLLKEEPER_SERVER__PORT=8000 \
    TOLLKEEPER_AUTH__MASTER_KEY_FILE=/data/master.key \
    TOLLKEEPER_TELEMETRY__DATABASE_URL=sqlite+aiosqlite:////data/tollkeeper.db

WORKDIR /data
VOLUME /data
USER tollkeeper
EXPOSE 8000

# http.client, since urllib would ask the HTTP_PROXY that may be set for the upstreams.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['TOLLKEEPER_SERVER__PORT']), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["tollkeeper"]
CMD ["serve"]
