"""Next-token cross-entropy in float32 that never holds the logits of the whole batch.

Logits exist for one chunk of tokens at a time, and once: where a gradient is wanted, the same pass that takes the loss
multiplies its derivative by the head and by the activations, so that nothing is computed again in the backward pass
(the losses enter the objective with weights that are known beforehand, so the backward pass only scales).

On a mesh each device takes the loss of its own tokens against its own rows of the vocabulary; what it sends are two
numbers a token (the largest logit and the sum of exponentials) and the logit of the target.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from qwen3_jax.sharding import DEFAULT_RULES, Rules, axes_of, current_mesh, logical_to_spec


class TokenLosses(NamedTuple):
    """Of a batch.

    Attributes:
      objective: float32[], the sum over tokens of weight * (loss + z_loss * log_z^2). Only this has a gradient.
      losses: float32[B, T], each token's cross-entropy, also where its weight is 0.
      log_z: float32[B, T], log of the sum of exponentials of its logits.
    """

    objective: Float[Array, ""]
    losses: Float[Array, "B T"]
    log_z: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class _How:
    """Static part of a call; on a mesh also the mesh axes that split the vocabulary, and those that split the
    head until it is used."""

    chunk: int
    z_loss: float
    rules: Rules
    vocab: tuple[str, ...] = ()
    fsdp_axes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def token_losses(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    rules: Rules = DEFAULT_RULES,
    z_loss: float = 0.0,
) -> TokenLosses:
    """Losses of all tokens, and their weighted sum for the gradient with respect to `hidden` and `head`.

    Args:
      hidden: after the final norm.
      head: the output matrix, [out, in] (the embedding when tied), in any dtype: it is cast to that of `hidden`. Its
        gradient is summed over chunks in float32.
      weights: of each token in the objective, 0 for those that do not count. They have no gradient.
      chunk: tokens of a device whose logits exist at once.
      rules: where the arrays are on the current mesh, when there is one.
      z_loss: coefficient of log_z^2 (PaLM, 2204.02311, section 5), which keeps log_z near 0.
    """
    return TokenLosses(*_losses(hidden, head, targets, weights, _How(chunk, z_loss, rules)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _losses(hidden: Array, head: Array, targets: Array, weights: Array, how: _How) -> tuple[Array, Array, Array]:
    objective, losses, log_z = _everywhere(hidden, head, targets, weights, how, gradients=False)
    return objective, losses, log_z


def _forward(
    hidden: Array, head: Array, targets: Array, weights: Array, how: _How
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
    *out, d_hidden, d_head = _everywhere(hidden, head, targets, weights, how, gradients=True)
    if current_mesh() is not None:
        # No gradient of the hidden states leaves before that of the head is scattered. The compiler would leave the
        # scattering for the end and keep the whole head's gradient while the layers run backward.
        d_hidden, d_head = jax.lax.optimization_barrier((d_hidden, d_head))
    return (out[0], out[1], out[2]), (d_hidden, d_head.astype(head.dtype))


def _backward(
    _: _How, residuals: tuple[Array, Array], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, None, None]:
    d_hidden, d_head = ((x.astype(jnp.float32) * cotangents[0]).astype(x.dtype) for x in residuals)
    return d_hidden, d_head, None, None


_losses.defvjp(_forward, _backward)


def _everywhere(
    hidden: Array, head: Array, targets: Array, weights: Array, how: _How, gradients: bool
) -> tuple[Array, ...]:
    """Objective, losses, log_z, and the objective's gradients, on the current mesh if there is one."""
    if current_mesh() is None:
        return _local(hidden, head, targets, weights, how, gradients)
    sequence, vocab, fsdp_axes = (axes_of(name, how.rules) for name in ("sequence", "vocab", "embed"))
    how = dataclasses.replace(how, vocab=vocab, fsdp_axes=fsdp_axes, tokens=axes_of("batch", how.rules) + sequence)
    by_token = logical_to_spec(("batch", "sequence"), how.rules)
    of_hidden, of_head = PartitionSpec(*by_token, None), logical_to_spec(("vocab", "embed"), how.rules)
    out: tuple[Array, ...] = jax.shard_map(
        partial(_on_device, how=how, gradients=gradients),
        in_specs=(of_hidden, of_head, by_token, by_token),
        out_specs=(PartitionSpec(), by_token, by_token, *((of_hidden, of_head) if gradients else ())),
        check_vma=False,
    )(hidden, head, targets, weights)
    return out


def _on_device(
    hidden: Array, head: Array, targets: Array, weights: Array, how: _How, gradients: bool
) -> tuple[Array, ...]:
    """The part of one device, with what it has to send: the head's gradient in the dtype of the activations."""
    head = head.astype(hidden.dtype)
    for axis in reversed(how.fsdp_axes):  # one after the other: see `sharding.gather_weight`
        head = jax.lax.all_gather(head, axis, axis=1, tiled=True)
    objective, losses, log_z, *rest = _local(hidden, head, targets, weights, how, gradients)
    objective = jax.lax.psum(objective, how.tokens)
    if not gradients:
        return objective, losses, log_z
    d_hidden, d_head = rest
    d_head = d_head.astype(hidden.dtype)
    for axis in how.fsdp_axes:
        if axis in how.tokens:
            d_head = jax.lax.psum_scatter(d_head, axis, scatter_dimension=1, tiled=True)
        else:
            d_head = _own_part(d_head, axis)
    others = tuple(axis for axis in how.tokens if axis not in how.fsdp_axes)
    d_head = jax.lax.psum(d_head, others) if others else d_head
    d_hidden = jax.lax.psum(d_hidden, how.vocab) if how.vocab else d_hidden
    return objective, losses, log_z, d_hidden, d_head


def _own_part(x: Array, axis: str) -> Array:
    size = x.shape[1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, axis=1)


def _local(hidden: Array, head: Array, targets: Array, weights: Array, how: _How, gradients: bool) -> tuple[Array, ...]:
    """The loss of the tokens at hand against all of the vocabulary, of which this device has the rows that the mesh
    axes `how.vocab` leave it. Gradients: [B, T, D] in the dtype of `hidden` and float32[V, D], not summed over devices.
    """
    head = head.astype(hidden.dtype)
    first_row = jax.lax.axis_index(how.vocab) * head.shape[0] if how.vocab else jnp.int32(0)
    chunk = min(how.chunk, targets.size)
    count = math.ceil(targets.size / chunk)

    def chunks(x: Array) -> Array:
        flat = x.reshape(targets.size, *x.shape[2:])
        flat = jnp.pad(flat, [(0, count * chunk - targets.size)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(count, chunk, *flat.shape[1:])

    def one(d_head: Array | None, part: tuple[Array, Array, Array]) -> tuple[Array | None, tuple[Array, ...]]:
        states, labels, weight = part
        logits = jnp.einsum("td,vd->tv", states, head, preferred_element_type=jnp.float32)
        log_z = _log_normalizer(logits, how.vocab)
        losses = log_z - _target_logit(logits, labels - first_row, how.vocab)
        objective = jnp.sum(weight * (losses + how.z_loss * jnp.square(log_z)))
        if d_head is None:
            return None, (objective, losses, log_z)
        of_softmax = weight * (1 + 2 * how.z_loss * log_z)
        rows = jnp.arange(head.shape[0], dtype=labels.dtype)[None, :] == (labels - first_row)[:, None]
        d_logits = jnp.exp(logits - log_z[:, None]) * of_softmax[:, None] - jnp.where(rows, weight[:, None], 0.0)
        d_logits = d_logits.astype(states.dtype)
        d_states = jnp.einsum("tv,vd->td", d_logits, head, preferred_element_type=jnp.float32)
        d_head = d_head + jnp.einsum("tv,td->vd", d_logits, states, preferred_element_type=jnp.float32)
        return d_head, (objective, losses, log_z, d_states.astype(states.dtype))

    start = jnp.zeros(head.shape, jnp.float32) if gradients else None
    d_head, (objective, *by_token) = jax.lax.scan(one, start, (chunks(hidden), chunks(targets), chunks(weights)))
    whole = [x.reshape(count * chunk, *x.shape[2:])[: targets.size].reshape(*targets.shape, -1) for x in by_token]
    losses, log_z = (x[:, :, 0] for x in whole[:2])
    out = (jnp.sum(objective), losses, log_z)
    return (*out, whole[2], d_head) if d_head is not None else out


def _log_normalizer(logits: Float[Array, "T V"], vocab: tuple[str, ...]) -> Float[Array, " T"]:
    largest = jnp.max(logits, axis=1)
    largest = jax.lax.pmax(largest, vocab) if vocab else largest
    exponentials = jnp.sum(jnp.exp(logits - largest[:, None]), axis=1)
    return largest + jnp.log(jax.lax.psum(exponentials, vocab) if vocab else exponentials)


def _target_logit(logits: Float[Array, "T V"], rows: Int[Array, " T"], vocab: tuple[str, ...]) -> Float[Array, " T"]:
    """The logit of row `rows` of the vocabulary, counted from this device's first one: only one device has it."""
    here = (rows >= 0) & (rows < logits.shape[1])
    chosen = jnp.take_along_axis(logits, jnp.where(here, rows, 0)[:, None], axis=1)[:, 0]
    chosen = jnp.where(here, chosen, 0.0)
    return jax.lax.psum(chosen, vocab) if vocab else chosen
