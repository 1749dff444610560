"""Slice updates on CPU, where XLA has no bfloat16 form of them: it would convert the whole buffer to float32 and back."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array


def as_integers(
    update: Callable[[Array, Sequence[Array]], Array], buffer: Array, new: Sequence[Array]
) -> Array:
    """`update(buffer, new)` with 16-bit floats passed as integers, so that their bits just move."""
    if buffer.dtype.itemsize != 2:
        return update(buffer, new)
    bits = [jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (buffer, *new)]
    return jax.lax.bitcast_convert_type(update(bits[0], bits[1:]), buffer.dtype)
