"""Masked next-token cross-entropy in float32 that never holds the logits of the whole batch.

On a mesh each device takes the loss of its own tokens against its own rows of the vocabulary; what it sends are two
numbers a token (the largest logit and the sum of exponentials) and the logit of the target.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sharding import DEFAULT_RULES, Rules, axes_of, current_mesh, logical_to_spec


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    chunk: int,
    rules: Rules = DEFAULT_RULES,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of the tokens in `mask`, and their number.

    Logits exist for `chunk` tokens of a device at a time, forward and backward: each chunk is rematerialised, so
    [B, T, V] is never whole.

    Args:
      hidden: after the final norm.
      head: the output matrix, [out, in] (the embedding when tied), in any dtype: it is cast to that of `hidden`.
      rules: where the arrays are on the current mesh, when there is one.
    """
    count = jnp.sum(mask, dtype=jnp.float32)
    if current_mesh() is None:
        return _local_sum(hidden, head, targets, mask, chunk=chunk, vocab=(), waiting=()), count
    tokens, vocab, waiting = (axes_of(name, rules) for name in ("sequence", "vocab", "embed"))
    rows = axes_of("batch", rules) + tokens
    by_token = logical_to_spec(("batch", "sequence"), rules)
    local = partial(_local_sum, chunk=chunk, vocab=vocab, waiting=waiting)
    # In the backward pass: no gradient of the hidden states leaves before that of the head is scattered. The compiler
    # would leave the scattering for the end and keep the whole head's gradient while the layers run backward.
    hidden, head = jax.lax.optimization_barrier((hidden, head))
    total = jax.shard_map(
        lambda *arrays: jax.lax.psum(local(*arrays), rows),
        in_specs=(PartitionSpec(*by_token, None), logical_to_spec(("vocab", "embed"), rules), by_token, by_token),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(hidden, head, targets, mask)
    return total, count


def _local_sum(
    hidden: Array,
    head: Array,
    targets: Array,
    mask: Array,
    *,
    chunk: int,
    vocab: tuple[str, ...],
    waiting: tuple[str, ...],
) -> Array:
    """The loss of the tokens at hand against all of the vocabulary, of which this device has the rows that the mesh
    axes `vocab` leave it; `waiting` are the axes the head is gathered over."""
    head = head.astype(hidden.dtype)
    first_row = jnp.int32(0)
    for axis in reversed(waiting):  # one after the other: see `sharding.gather_weight`
        head = jax.lax.all_gather(head, axis, axis=1, tiled=True)
    if vocab:
        first_row = jax.lax.axis_index(vocab) * head.shape[0]
    tokens = targets.size
    chunk = min(chunk, tokens)
    count = -(-tokens // chunk)

    def chunks(x: Array) -> Array:
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, [(0, count * chunk - tokens)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(count, chunk, *flat.shape[1:])

    @jax.checkpoint
    def one(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, labels, counted = part
        logits = jnp.einsum("td,vd->tv", states, head, preferred_element_type=jnp.float32)
        losses = _log_normalizer(logits, vocab) - _target_logit(logits, labels - first_row, vocab)
        return total + jnp.sum(jnp.where(counted, losses, 0.0)), None

    return jax.lax.scan(one, jnp.zeros((), jnp.float32), (chunks(hidden), chunks(targets), chunks(mask)))[0]


def _log_normalizer(logits: Float[Array, "T V"], vocab: tuple[str, ...]) -> Float[Array, " T"]:
    if not vocab:
        return jax.nn.logsumexp(logits, axis=1)
    largest = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits, axis=1)), vocab)
    return largest + jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits - largest[:, None]), axis=1), vocab))


def _target_logit(logits: Float[Array, "T V"], rows: Int[Array, " T"], vocab: tuple[str, ...]) -> Float[Array, " T"]:
    """The logit of row `rows` of the vocabulary, counted from this device's first one: only one device has it."""
    here = (rows >= 0) & (rows < logits.shape[1])
    chosen = jnp.take_along_axis(logits, jnp.where(here, rows, 0)[:, None], axis=1)[:, 0]
    chosen = jnp.where(here, chosen, 0.0)
    return jax.lax.psum(chosen, vocab) if vocab else chosen
