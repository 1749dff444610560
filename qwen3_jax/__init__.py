"""Qwen3, dense and mixture-of-experts, in JAX and Flax: the model."""

from qwen3_jax.config import ModelConfig, YarnConfig
from qwen3_jax.model import ModelOutput, Qwen3

__all__ = ["ModelConfig", "ModelOutput", "Qwen3", "YarnConfig"]
