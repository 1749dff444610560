"""A tiny random checkpoint and a way to run commands in this process."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.checkpoints.load import save_pretrained
from qwen3_jax.cli import main
from qwen3_jax.compile_cache import VARIABLE
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import spec_tree
from qwen3_jax.text.tokenizer import load_tokenizer
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
    config, rng = tiny.dense_config(max_position_embeddings=512), np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: jnp.asarray(0.2 * rng.standard_normal(spec.shape) + (spec.init == "ones"), jnp.float32),
        spec_tree(config, "unrolled"),
    )
    model = Qwen3(config, generation=GenerationDefaults(eos_token_ids=(tok.eos_token_id,)))
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
