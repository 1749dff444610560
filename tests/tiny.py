"""Tiny models and a tiny tokenizer, made in the test: small enough to read, with every feature of the real ones."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Layout, ParamSpec, restack, spec_tree

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = [
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.",
    "system user assistant What is 3 plus 4? The answer is 7. 你好 世界 привет мир",
]


def write_tokenizer(directory: Path, chat_template: str | None = None) -> Path:
    """A byte-level BPE of about 400 tokens with Qwen3's 26 added tokens, in Hugging Face form."""
    directory.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(_TEXT * 4, trainer)
    bpe.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    bpe.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    config["tokenizer_class"] = "Qwen2Tokenizer"
    template = Path(__file__).parents[1] / "qwen3_jax" / "pocket" / "chat_template.jinja"
    config["chat_template"] = chat_template or template.read_text(encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def dense_config(**changes: Any) -> ModelConfig:
    """Two layers, head_dim unequal to hidden / heads, grouped queries."""
    values = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    }
    return ModelConfig(**{**values, **changes})


def moe_config(**changes: Any) -> ModelConfig:
    """The same with 8 experts, two a token."""
    return dense_config(**{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, **changes})


def random_params(config: ModelConfig, layout: Layout = "stacked", seed: int = 7, dtype: Any = np.float32) -> Any:
    """Parameters drawn by numpy, norms around 1: what `init` leaves at exactly 1 or near 0 must count in tests.

    Both layouts get the same numbers. (`model.init` compiles a generator for every shape: seconds a test.)
    """
    rng = np.random.default_rng(seed)

    def draw(spec: ParamSpec) -> Any:
        values = rng.normal(size=spec.shape) * 0.2 + (spec.init == "ones")
        return jnp.asarray(values.astype(dtype))

    unrolled = jax.tree.map(draw, spec_tree(config, "unrolled"), is_leaf=lambda x: isinstance(x, ParamSpec))
    return unrolled if layout == "unrolled" else restack(unrolled, config)
