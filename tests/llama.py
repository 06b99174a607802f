"""A real llama.cpp server with a tiny model of random weights.

    with llama_server(folder) as url: ...        url ends in /v1; its log is folder/llama.log

Run as a program (``python -m tests.llama FOLDER``) it is the server: its process holds nothing
else, since llama.cpp prints much and ends only with its process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
from gguf import GGUFWriter, TokenType
from xllamacpp import CommonParams, Server, llama_pooling_type

MODEL = "tiny"
KEY = "sk-llama-0001"
CONTEXT = 4096
"""Tokens that one request may take, prompt and answer together."""

_SLOTS = 2
_WIDTH, _HEADS, _HIDDEN, _LAYERS = 64, 4, 128, 2
_WORDS = ("the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "for", "on", "with")
_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SECONDS = 30.0
"""How long the server may take to come up; it needs about one."""


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """Serve until the block ends; the process ends with it, whatever happens."""
    log, address = folder / "llama.log", folder / "address"
    address.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.llama", str(folder)]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out) as process,
    ):
        try:
            deadline = time.monotonic() + _SECONDS
            while not address.exists():
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < deadline, "llama.cpp did not come up"
                time.sleep(0.02)
            yield address.read_text() + "/v1"
        finally:
            process.kill()


def write_model(path: Path) -> None:
    """A llama of two layers: bytes and a few words for tokens, random weights, no sense."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT * _SLOTS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    vocabulary = _add_vocabulary(writer)
    shapes = {"token_embd": (vocabulary, _WIDTH), "output": (vocabulary, _WIDTH)}
    norms = ["output_norm"]
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{part}": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{part}": (_HIDDEN, _WIDTH) for part in ("gate", "up")}
        shapes[f"{block}.ffn_down"] = (_WIDTH, _HIDDEN)
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm"]
    chance = numpy.random.default_rng(1)
    for name, shape in shapes.items():
        weights = 0.05 * chance.standard_normal(shape)
        writer.add_tensor(f"{name}.weight", weights.astype(numpy.float32))
    for name in norms:
        writer.add_tensor(f"{name}.weight", numpy.ones(_WIDTH, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter) -> int:
    """The tokens, the template and the number of tokens."""
    marks = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    single = [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    words = [(f"\u2581{word}", TokenType.NORMAL) for word in _WORDS]
    tokens = [*marks, *single, *words]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)  # else a grammar does not find the template's own text
    writer.add_chat_template(_TEMPLATE)
    writer.add_vocab_size(len(tokens))
    return len(tokens)


def _serve(folder: Path) -> None:
    """Serve until the parent is gone: its end of our standard input closes."""
    model = folder / "tiny.gguf"
    write_model(model)
    settings = CommonParams()
    settings.model.path = str(model)
    settings.model_alias = {MODEL}
    settings.api_keys = [KEY]
    settings.n_ctx = CONTEXT * _SLOTS
    settings.n_parallel = _SLOTS
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.embedding = True
    settings.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    server = Server(settings)
    draft = folder / "address.part"
    draft.write_text(server.listening_address)
    draft.rename(folder / "address")
    sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
