"""What a step minimises: cross-entropy, z-loss and load balance, over one batch or over its micro-batches.

Accumulation is a `lax.scan` over rematerialised micro-batches inside the loss. One gradient is taken of all of it,
after the whole forward pass, when the experts' selection frequency over the global batch is known: the balance loss is
exact. It costs one more forward pass; without accumulation there is no scan and nothing is computed twice. Parameters
are cast to the activations' dtype inside a micro-batch, so that their gradients accumulate in float32.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.model import Qwen3
from qwen3_jax.router import RowSums
from sharding import Rules, constrain
from train.balance import balance_loss
from train.data import Batch
from train.loss import cross_entropy, token_losses
from train.settings import LossConfig


@flax.struct.dataclass
class Report:
    """What a batch's losses were.

    Attributes:
      loss: float32[], mean cross-entropy of the counted tokens.
      tokens: float32[], their number.
      balance_loss: float32[], before its coefficient; 0 for a dense model or without it.
      z_loss: float32[], mean of log(Z)^2 over the counted tokens, before its coefficient.
      domain_loss: float32[domains], sums of cross-entropy of each domain's counted tokens.
      domain_tokens: float32[domains], their numbers.
      expert_load: int32[n, E] a run of sparse layers: assignments each expert got.
    """

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    balance_loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    domain_loss: Float[Array, " domains"]
    domain_tokens: Float[Array, " domains"]
    expert_load: tuple[Array, ...]


class _Sums(NamedTuple):
    """Of a micro-batch; they add up."""

    objective: Float[Array, ""]
    loss: Float[Array, ""]
    log_z_squared: Float[Array, ""]
    domain_loss: Float[Array, " domains"]
    expert_load: tuple[Array, ...]


def objective(
    model: Qwen3, params: Any, batch: Batch, config: LossConfig, micro_batches: int = 1, num_domains: int = 1
) -> tuple[Float[Array, ""], Report]:
    """The value to minimise: means over the counted tokens of the whole batch, not means of micro-batches' means.

    Args:
      micro_batches: parts the batch is cut into; each has the same number of every data shard's rows.
      num_domains: losses are reported for domains 0 to num_domains - 1 of `batch.domains`.
    """
    tokens = jnp.sum(batch.loss_mask, dtype=jnp.float32)
    per_token = 1.0 / jnp.maximum(tokens, 1.0)
    balanced = config.balance != "none" and any(sparse for sparse, _ in model.config.segments)

    def one(part: Batch) -> tuple[_Sums, tuple[RowSums, ...]]:
        return _forward(model, params, part, config, per_token, num_domains, balanced)

    if micro_batches == 1:
        sums, rows = one(batch)
        rows = jax.tree.map(lambda leaf: leaf[None], rows)
        counted = jnp.sum(batch.segment_ids > 0, axis=1)[None]
    else:
        parts = cut(batch, micro_batches, model.placement.rules)
        counted = jnp.sum(parts.segment_ids > 0, axis=2)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, _first(parts))[0])

        def add(total: _Sums, part: Batch) -> tuple[_Sums, tuple[RowSums, ...]]:
            sums, rows = one(part)
            return jax.tree.map(jnp.add, total, sums), rows

        # Inside a scan the compiler can not join the two computations, so it need not be kept from it.
        sums, rows = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, parts)
    value, balance = sums.objective, jnp.zeros((), jnp.float32)
    if balanced:
        balance = balance_loss(rows, counted, config.balance)
        coefficient = config.balance_coefficient
        value = value + (model.config.router_aux_loss_coef if coefficient is None else coefficient) * balance
    report = Report(
        loss=sums.loss * per_token,
        tokens=tokens,
        balance_loss=balance,
        z_loss=sums.log_z_squared * per_token,
        domain_loss=sums.domain_loss,
        domain_tokens=by_domain(batch.domains, batch.loss_mask.astype(jnp.float32), num_domains),
        expert_load=sums.expert_load,
    )
    return value, report


def batch_loss(
    model: Qwen3, params: Any, batch: Batch, chunk: int
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], tuple[Array, ...]]]:
    """Mean cross-entropy over the batch's counted tokens, nothing added; their number and the experts' load."""
    out, head = _apply(model, params, batch, False)
    total, count = cross_entropy(out.hidden, head, batch.targets, batch.loss_mask, chunk, model.placement.rules)
    return total / jnp.maximum(count, 1.0), (count, out.expert_load)


def cut(batch: Batch, parts: int, rules: Rules) -> Batch:
    """Arrays [parts, B / parts, T]: micro-batch j has the rows j, j + parts, ...

    Devices keep consecutive rows of a batch, so each has as many rows of every micro-batch and nothing is sent.
    """

    def one(x: Array) -> Array:
        apart = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(apart, (None, "batch", "sequence"), rules)

    cut_up: Batch = jax.tree.map(one, batch)
    return cut_up


def by_domain(
    domains: Int[Array, "B T"], values: Float[Array, "B T"], num_domains: int
) -> Float[Array, " {num_domains}"]:
    """Sum of the values of each domain's tokens."""
    if num_domains == 1:  # of a single domain, whatever its number: no comparison
        return jnp.sum(values)[None]
    numbers = jnp.arange(num_domains, dtype=domains.dtype).reshape(1, 1, -1)
    return jnp.sum(jnp.where(domains[:, :, None] == numbers, values[:, :, None], 0.0), axis=(0, 1))


def _first(parts: Batch) -> Batch:
    first: Batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    return first


def _apply(model: Qwen3, params: Any, batch: Batch, balanced: bool) -> tuple[Any, Array]:
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,  # the loss takes its own logits, chunk by chunk; these are dropped by the compiler
        output_router_rows=balanced,
    )
    return out, params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]


def _forward(
    model: Qwen3,
    params: Any,
    batch: Batch,
    config: LossConfig,
    per_token: Float[Array, ""],
    num_domains: int,
    balanced: bool,
) -> tuple[_Sums, tuple[RowSums, ...]]:
    out, head = _apply(model, params, batch, balanced)
    counted = batch.loss_mask.astype(jnp.float32)
    taken = token_losses(
        out.hidden, head, batch.targets, counted * per_token, config.chunk, model.placement.rules, config.z_loss
    )
    sums = _Sums(
        objective=taken.objective,
        loss=jnp.sum(counted * taken.losses),
        log_z_squared=jnp.sum(counted * jnp.square(taken.log_z)),
        domain_loss=by_domain(batch.domains, counted * taken.losses, num_domains),
        expert_load=out.expert_load,
    )
    return sums, out.router_rows
