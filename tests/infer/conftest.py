"""One tiny model with a tokenizer for all tests of generation."""

from typing import Any, NamedTuple

import pytest

from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.tiny import dense_config, moe_config, random_params, write_tokenizer


class Ready(NamedTuple):
    """What `generate` takes first."""

    model: Qwen3
    params: Any
    tok: Tokenizer


@pytest.fixture(scope="session")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def build(config, tok: Tokenizer, eos: tuple[int, ...] = ()) -> Ready:
    # No token of a random model is an end by accident, unless a test says so.
    model = Qwen3(config, generation=GenerationDefaults(eos_token_ids=eos or (config.vocab_size - 1,)))
    return Ready(model, random_params(config, "unrolled"), tok)


@pytest.fixture(scope="session")
def dense(tok: Tokenizer) -> Ready:
    return build(dense_config(), tok)


@pytest.fixture(scope="session")
def moe(tok: Tokenizer) -> Ready:
    return build(moe_config(tie_word_embeddings=False), tok)
