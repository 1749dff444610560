"""A tiny random checkpoint and a way to run commands in this process."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.checkpoint import save_pretrained
from qwen3_jax.cli import main
from qwen3_jax.compile_cache import VARIABLE
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.model import Qwen3
from qwen3_jax.tokenizer import load_tokenizer
from tests import tiny


class Ran(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Two layers with random weights, the tiny tokenizer, a context of 512. Left alone by every test."""
    directory = tmp_path_factory.mktemp("cli") / "tiny"
    tok = load_tokenizer(tiny.write_tokenizer(tmp_path_factory.mktemp("cli-tokenizer")))
    model = Qwen3(
        tiny.dense_config(max_position_embeddings=512), generation=GenerationDefaults(eos_token_ids=(tok.eos_token_id,))
    )
    params = tiny.shake(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    save_pretrained(directory, model, params, tok)
    return directory


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint, for a test to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Ran]:
    """`run("generate", "--prompt", ...)`; stdin is empty unless given, and no compile cache is left on."""
    monkeypatch.setenv(VARIABLE, "off")

    def call(*argv: object, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Ran(status, *capsys.readouterr())

    return call
