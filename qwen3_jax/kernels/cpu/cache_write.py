"""The write into the cache on CPU: one slice after the other, each as a step of a loop or a branch.

XLA:CPU then updates the buffer in place. In a straight program it often fuses the update with what reads the cache
next, and copies it; and it has no bfloat16 form of an update: as integers the bits just move, where it would convert
the whole buffer to float32 and back.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def write_pieces(buffer: Array, new: Array, starts: Int[Array, "R dims"], fits: Bool[Array, " R"]) -> Array:
    """See `qwen3_jax.kernels.cache_write`."""
    size = new.shape[-4] // starts.shape[0]

    def one(i: Array | int, buffer: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(_bits(new), i * size, size, -4 % new.ndim)

        def write(buffer: Array) -> Array:
            written = jax.lax.dynamic_update_slice(_bits(buffer), part, list(starts[i]))
            return written if buffer.dtype == written.dtype else jax.lax.bitcast_convert_type(written, buffer.dtype)

        return jax.lax.cond(fits[i], write, lambda buffer: buffer, buffer)

    return one(0, buffer) if starts.shape[0] == 1 else jax.lax.fori_loop(0, starts.shape[0], one, buffer)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x
