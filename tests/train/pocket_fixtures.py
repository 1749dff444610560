"""A small tokenizer of the pocket kind, trained once for all tests of the package."""

import functools
import tempfile
from pathlib import Path

from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.initial import make_tokenizer
from qwen3_jax.train.settings import TokenizerConfig

MODEL = {
    "model_type": "qwen3",
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


@functools.cache
def pocket_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as directory:
        config = TrainConfig(model=MODEL, tokenizer=TokenizerConfig(vocab_size=760, corpus_size=800))
        return make_tokenizer(Path(directory), config)
