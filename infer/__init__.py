"""How Qwen3 answers: sampling, the decode loop, the thinking budget, generation."""

from qwen3_jax.infer.config import PAPER_STOP_THINKING_TEXT, STOP_THINKING_TEXT, GenerationConfig
from qwen3_jax.infer.generate import generate, stream
from qwen3_jax.infer.results import Piece, Result

__all__ = [
    "PAPER_STOP_THINKING_TEXT",
    "STOP_THINKING_TEXT",
    "GenerationConfig",
    "Piece",
    "Result",
    "generate",
    "stream",
]
