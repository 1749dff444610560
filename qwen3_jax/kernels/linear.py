"""x @ w.T for weights in Hugging Face's [out, in] orientation."""

from typing import Any

import jax
from jaxtyping import Array, Float

from qwen3_jax.kernels.cpu.linear import cpu_linear
from qwen3_jax.sharding import target_platform


def linear(x: Float[Array, "... I"], w: Float[Array, "O I"], out_dtype: Any = None) -> Float[Array, "... O"]:
    """Multiplies the last axis of x by w transposed.

    Args:
      x: activations, in the dtype of `w`.
      w: weight as Hugging Face stores it.
      out_dtype: dtype of the result, that of x by default; the accumulation is in float32 in any case.

    Returns:
      [..., O].
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if target_platform() == "cpu" and x.size > 0:
        return cpu_linear(x, w, out_dtype)
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=out_dtype)
