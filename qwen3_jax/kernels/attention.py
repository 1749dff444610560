"""Causal attention of whole sequences, without a cache: training, scoring, distillation.

  xla     scores of every query with every key, masked: what `kernels/reference.py` computes. Runs everywhere.
  splash  TPU: a Pallas kernel that holds a block of scores at a time and skips the blocks above the diagonal.
  cudnn   GPU: cuDNN's fused attention, in 16 bits. It knows causality but not documents: with `segment_ids` it is
          given a boolean mask [B, 1, T, T].

Attention with a cache (generation) is not decided here: few queries meet many keys, and XLA's form serves it.
"""

from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.kernels.cudnn import cudnn_attention
from qwen3_jax.kernels.masks import causal_mask
from qwen3_jax.kernels.reference import attention
from qwen3_jax.kernels.splash import LANES, splash_attention
from qwen3_jax.sharding import DEFAULT_RULES, Rules, axes_of, current_mesh, dividing, target_platform

AttentionBackend = Literal["xla", "splash", "cudnn"]
ATTENTION_BACKENDS = ("auto", *get_args(AttentionBackend))

_RUNS_ON = {"splash": ("tpu", "cpu"), "cudnn": ("gpu",)}


def choose_attention(
    backend: str, length: int, head_dim: int, dtype: Any, platform: str | None = None
) -> AttentionBackend:
    """What `backend` stands for, decided when the function is traced.

    In:  "auto", length 4096, head_dim 128, bfloat16, "tpu"     Out: "splash"

    Args:
      length: tokens of a sequence, all devices together.
      platform: of the devices, see `target_platform`.

    Raises:
      ValueError: an unknown backend, or one that does not run on the platform. A kernel that does not take the
        length gives way to "xla".
    """
    if backend not in ATTENTION_BACKENDS:
        known = ", ".join(ATTENTION_BACKENDS)
        raise ValueError(f"attention_backend must be one of {known}, got {backend!r}: choose one")
    platform = target_platform() if platform is None else platform
    if backend != "auto":
        if platform not in _RUNS_ON.get(backend, (platform,)):
            runs_on = " or ".join(_RUNS_ON[backend])
            raise ValueError(f"attention_backend={backend!r} runs on {runs_on}, got {platform}: use 'auto'")
        return cast(AttentionBackend, backend) if _takes(backend, length) else "xla"
    if platform == "tpu" and length >= LANES and head_dim % 64 == 0:
        return "splash"
    sixteen_bits = jnp.dtype(dtype).itemsize == 2
    if platform == "gpu" and sixteen_bits and head_dim % 8 == 0 and head_dim <= 128 and _takes("cudnn", length):
        return "cudnn"
    return "xla"


def _takes(backend: str, length: int) -> bool:
    """Whether the kernel has a form for so many tokens: cuDNN's backward pass refuses odd lengths."""
    return backend != "cudnn" or length % 2 == 0


def self_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    implementation: str = "auto",
    rules: Rules = DEFAULT_RULES,
) -> Float[Array, "B T N H"]:
    """Each token attends to itself and the tokens before it, of its own document.

    Args:
      q, k, v: queries, keys and values; query head n reads key-value head n // (N/K).
      segment_ids: the document of each token, padding being one of its own (0 by custom); None: one document a row.
      implementation: see the module; "auto" chooses.
      rules: where things are on the current mesh, when there is one. Under context parallelism each device has the
        queries of its part of the sequence and gathers the keys and values of all of it.

    Raises:
      ValueError: an unknown implementation, or one that does not run on the platform.
    """
    chosen = choose_attention(implementation, q.shape[1], q.shape[3], q.dtype)
    axes = {
        name: dividing(size, axes_of(name, rules)) for name, size in zip(("batch", "sequence"), q.shape, strict=False)
    }
    rules = rules.override(axes) if current_mesh() is not None else rules
    with jax.named_scope("attention"):
        if chosen == "splash":
            return splash_attention(q, k, v, segment_ids, rules, interpret=target_platform() == "cpu")
        if chosen == "cudnn":
            return cudnn_attention(q, k, v, segment_ids, rules)
    mask = causal_mask(jnp.ones(q.shape[:2], bool), segment_ids)
    return attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
