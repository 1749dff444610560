"""What a step minimises: cross-entropy, z-loss and load balance, over one batch or over its micro-batches.

Accumulation is a `lax.scan` over rematerialised micro-batches inside the loss. One gradient is taken of all of it,
after the whole forward pass, when the experts' selection frequency over the global batch is known: the balance loss is
exact. It costs one more forward pass. Where the loss is a sum over micro-batches (a dense model, or a balance loss of a
micro-batch's own), each one's gradient is taken at once and added up instead; without accumulation there is no scan.
Parameters are cast to the activations' dtype inside a micro-batch, so that their gradients accumulate in float32.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.experts.router import RowSums
from qwen3_jax.kernels.cross_entropy import token_losses
from qwen3_jax.network.model import Qwen3
from qwen3_jax.sharding import Rules, constrain
from qwen3_jax.train.data import Batch
from qwen3_jax.train.objectives.balance import balance_loss
from qwen3_jax.train.settings import LossConfig
from qwen3_jax.train.state import joined

T = TypeVar("T")


@flax.struct.dataclass
class Losses:
    """What a batch's losses were.

    Attributes:
      loss: float32[], mean cross-entropy of the counted tokens.
      tokens: float32[], their number.
      balance_loss, z_loss: float32[], what is added to `loss`: their coefficients are in them, and the sum of the three
        is what is minimised. None where nothing is added.
      domain_loss: float32[domains], sums of cross-entropy of each domain's counted tokens.
      domain_tokens: float32[domains], their numbers.
      expert_load: int32[n, E] a run of sparse layers: assignments each expert got from tokens that are no padding.
    """

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    balance_loss: Float[Array, ""] | None
    z_loss: Float[Array, ""] | None
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
) -> tuple[Float[Array, ""], Losses]:
    """The value to minimise: means over the counted tokens of the whole batch, not means of micro-batches' means.

    Args:
      micro_batches: parts the batch is cut into; each has the same number of every data shard's rows.
      num_domains: losses are reported for domains 0 to num_domains - 1 of `batch.domains`.
    """
    forward = partial(_forward, model, config=config, per_token=_per_token(batch), num_domains=num_domains)
    if micro_batches == 1:
        sums, rows = forward(params, batch)
        rows = jax.tree.map(lambda leaf: leaf[None], rows)
        counted = _row_tokens(batch)[None]
    else:
        parts = cut(batch, micro_batches, model.placement.rules)
        counted = jnp.sum(parts["segment_ids"] > 0, axis=2, dtype=jnp.int32)

        def add(total: _Sums, part: dict[str, Array]) -> tuple[_Sums, tuple[RowSums, ...]]:
            sums, rows = forward(params, Batch(**part))
            return jax.tree.map(jnp.add, total, sums), rows

        # Inside a scan the compiler can not join the two computations, so it need not be kept from it.
        start = _zeros(lambda: forward(params, Batch(**{name: array[0] for name, array in parts.items()}))[0])
        sums, rows = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, parts)
    balance = _added_balance(model, rows, counted, config) if rows else None
    value = sums.objective if balance is None else sums.objective + balance
    return value, _losses(sums, balance, batch, config, num_domains)


def gradients(
    model: Qwen3,
    params: Any,
    batch: Batch,
    config: LossConfig,
    micro_batches: int = 1,
    num_domains: int = 1,
    frozen: Any = None,
) -> tuple[Losses, Any]:
    """The gradient of `objective` with respect to `params`; the arguments are the same.

    Args:
      frozen: with adapters, the base's parameters, which have no gradient; `params` are then the adapters.
    """
    local = config.balance in ("micro_batch", "huggingface") or not _balanced(model, config)
    if micro_batches == 1 or not local:
        value = partial(objective, model, config=config, micro_batches=micro_batches, num_domains=num_domains)
        (_, report), grads = jax.value_and_grad(lambda params: value(joined(params, frozen), batch), has_aux=True)(
            params
        )
        return report, grads
    forward = partial(_forward, model, config=config, per_token=_per_token(batch), num_domains=num_domains)

    def value_of(params: Any, part: Batch) -> tuple[Array, tuple[_Sums, Array | None]]:
        sums, rows = forward(joined(params, frozen), part)
        if not rows:
            return sums.objective, (sums, None)
        rows = jax.tree.map(lambda leaf: leaf[None], rows)
        # The mean over micro-batches is a sum of their shares.
        balance = _added_balance(model, rows, _row_tokens(part)[None], config) / micro_batches
        return sums.objective + balance, (sums, balance)

    def of_part(part: dict[str, Array]) -> tuple[tuple[_Sums, Array | None], Any]:
        (_, sums), grads = jax.value_and_grad(value_of, has_aux=True)(params, Batch(**part))
        return sums, grads

    parts = cut(batch, micro_batches, model.placement.rules)
    first = {name: array[0] for name, array in parts.items()}
    start = _zeros(lambda: of_part(first))
    ((sums, balance), grads), _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None), start, parts
    )
    return _losses(sums, balance, batch, config, num_domains), grads


def domain_losses(
    model: Qwen3, params: Any, batch: Batch, chunk: int, num_domains: int
) -> tuple[Float[Array, " {num_domains}"], Float[Array, " {num_domains}"]]:
    """Cross-entropy summed over the counted tokens of each domain, and their numbers."""
    out, head = apply_to_batch(model, params, batch)
    counted = batch.loss_mask.astype(jnp.float32)
    losses = token_losses(out.hidden, head, batch.targets, counted, chunk, model.placement.rules).losses
    return by_domain(batch.domains, counted * losses, num_domains), by_domain(batch.domains, counted, num_domains)


def cut(batch: Batch, parts: int, rules: Rules) -> dict[str, Array]:
    """The batch's arrays by name as [parts, B / parts, T]: micro-batch j has the rows j, j + parts, ...

    Devices keep consecutive rows of a batch, so each has as many rows of every micro-batch and nothing is sent.
    """

    def one(x: Array) -> Array:
        apart = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(apart, (None, "batch", "sequence"), rules)

    return {field.name: one(jnp.asarray(getattr(batch, field.name))) for field in dataclasses.fields(batch)}


def by_domain(
    domains: Int[Array, "B T"], values: Float[Array, "B T"], num_domains: int
) -> Float[Array, " {num_domains}"]:
    """Sum of the values of each domain's tokens."""
    if num_domains == 1:  # of a single domain, whatever its number: no comparison
        return jnp.sum(values)[None]
    numbers = jnp.arange(num_domains, dtype=domains.dtype).reshape(1, 1, -1)
    return jnp.sum(jnp.where(domains[:, :, None] == numbers, values[:, :, None], 0.0), axis=(0, 1))


def _balanced(model: Qwen3, config: LossConfig) -> bool:
    wanted = config.balance != "none" and _coefficient(model, config) != 0
    return wanted and any(sparse for sparse, _ in model.config.segments)


def _added_balance(
    model: Qwen3, rows: tuple[RowSums, ...], counted: Int[Array, "M R"], config: LossConfig
) -> Float[Array, ""]:
    return _coefficient(model, config) * balance_loss(rows, counted, config.balance)


def _coefficient(model: Qwen3, config: LossConfig) -> float:
    given = config.balance_coefficient
    return model.config.router_aux_loss_coef if given is None else given


def _per_token(batch: Batch) -> Float[Array, ""]:
    return 1.0 / jnp.maximum(jnp.sum(batch.loss_mask, dtype=jnp.float32), 1.0)


def _row_tokens(batch: Batch) -> Int[Array, " B"]:
    """Tokens of each row that are no padding."""
    return jnp.sum(batch.segment_ids > 0, axis=1, dtype=jnp.int32)


def _zeros(function: Callable[[], T]) -> T:
    """Zeros in the shapes of what a function would give."""
    zeros: T = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))
    return zeros


def apply_to_batch(model: Qwen3, params: Any, batch: Batch) -> tuple[Any, Array]:
    """The network's output for a batch, without logits, and the head that makes them."""
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,  # the loss takes its own logits, chunk by chunk; these are dropped by the compiler
        output_router_rows=True,  # also where no loss needs them: then only the load is taken, without padding
    )
    return out, params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]


def _forward(
    model: Qwen3, params: Any, batch: Batch, *, config: LossConfig, per_token: Float[Array, ""], num_domains: int
) -> tuple[_Sums, tuple[RowSums, ...]]:
    out, head = apply_to_batch(model, params, batch)
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
    return sums, out.router_rows if _balanced(model, config) else ()


def _losses(
    sums: _Sums, balance: Float[Array, ""] | None, batch: Batch, config: LossConfig, num_domains: int
) -> Losses:
    counted, per_token = batch.loss_mask.astype(jnp.float32), _per_token(batch)
    return Losses(
        loss=sums.loss * per_token,
        tokens=jnp.sum(counted),
        balance_loss=balance,
        z_loss=config.z_loss * sums.log_z_squared * per_token if config.z_loss else None,
        domain_loss=sums.domain_loss,
        domain_tokens=by_domain(batch.domains, counted, num_domains),
        expert_load=sums.expert_load,
    )
