"""How Qwen3 answers: sampling, the decode loop, the thinking budget, generation."""

from qwen3_jax.infer.config import GenerationConfig
from qwen3_jax.infer.generate import generate, stream
from qwen3_jax.infer.results import Piece, Result
from qwen3_jax.infer.score import score
from qwen3_jax.infer.stop_thinking_text import PAPER_STOP_THINKING_TEXT, STOP_THINKING_TEXT

__all__ = [
    "PAPER_STOP_THINKING_TEXT",
    "STOP_THINKING_TEXT",
    "GenerationConfig",
    "Piece",
    "Result",
    "generate",
    "score",
    "stream",
]
