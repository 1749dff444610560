"""Kernels by backend, behind one function each: attention over whole sequences, and the grouped product of experts.

Which one runs is decided by platform and static shapes, in `choose_attention` and `choose_grouped_matmul`. On CPU every
kernel runs in Pallas's interpreter when it is asked for by name: slowly, and with the same result.
"""

from qwen3_jax.kernels.attention import ATTENTION_BACKENDS as ATTENTION_BACKENDS
from qwen3_jax.kernels.attention import choose_attention as choose_attention
from qwen3_jax.kernels.attention import self_attention as self_attention
