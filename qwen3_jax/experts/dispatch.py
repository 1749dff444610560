"""Tokens sent to the devices that own their experts, and back: the all-to-all form of expert parallelism.

Every device sorts its assignments by expert and knows, from one exchange of counts, where each block of them belongs in
the sequence of rows that its owner will work through: by expert, then by sender. So rows arrive sorted, and leave to
where they came from, without a permutation on the owner's side.

No token is dropped, whatever the load. An owner's sequence may be many times the balanced one (all tokens may want its
experts), so it is worked through in rounds of a fixed number of rows: a balanced load takes one round, and the buffers
of a round bound memory. How many rounds there are is known on all devices before the first.

Dimensions: T tokens of this device, X experts a token, A = T * X assignments, R rows of a round, P devices that share
the experts, L experts of each (E = P * L).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from qwen3_jax.experts.grouped import GroupedBackend, grouped_swiglu
from qwen3_jax.experts.router import expert_counts
from qwen3_jax.experts.sorting import Sorted, sort_assignments, sum_experts
from qwen3_jax.sharding import ragged_all_to_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatch:
    """What is known of an exchange before it is compiled.

    Attributes:
      axis: mesh axis of the devices that share the experts; None when each has all of them.
      devices: P.
      fsdp_axes: mesh axes over which the experts' weights are split until they are used, gathered here.
      mesh_axes: all axes of the mesh; its devices agree on the number of rounds.
      rows: R.
      worst: rows an owner may have to work through in all.
      usual: rows of a round when the load is even.
      implementation: how the local experts run.
    """

    axis: str | None
    devices: int
    fsdp_axes: tuple[str, ...]
    mesh_axes: tuple[str, ...]
    rows: int
    worst: int
    usual: int
    implementation: GroupedBackend


class _Traffic(NamedTuple):
    """Where every block of rows is, on all devices: [P, L, P] is (owner, expert, sender).

    Attributes:
      sorted: this device's assignments in order of expert.
      counts: rows of a block.
      begins: where it begins in the owner's sequence.
      sources: where it begins among the sender's sorted assignments.
      rounds: rounds until the busiest owner is through.
    """

    sorted: Sorted
    counts: Int[Array, "P L P"]
    begins: Int[Array, "P L P"]
    sources: Int[Array, "P L P"]
    rounds: Int[Array, ""]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatch(
    plan: Dispatch,
    x: Float[Array, "T D"],
    weights: Float[Array, "T X"],
    experts: Int[Array, "T X"],
    gate: Float[Array, "L F D_part"],
    up: Float[Array, "L F D_part"],
    down: Float[Array, "L D_part F"],
) -> Float[Array, "T D"]:
    """Each token through its experts, weighted and summed. Inside `jax.shard_map`.

    The backward pass is written out, round by round: it keeps nothing of the forward pass but its arguments, gathers
    the weights again and repeats the way in, three exchanges of rows where automatic differentiation would take four.
    """
    rows, scales, traffic, full = _prepare(plan, x, weights, experts, gate, up, down)

    def one(number: Array, returned: Array) -> Array:
        window = _Window(plan, traffic, number)
        out = _run(plan, window.sizes, window.take(rows), window.take(scales), *full)
        return window.give(out, returned)

    returned = _in_rounds(plan, traffic, one, jnp.zeros_like(rows))
    return _sum_rows(returned, traffic.sorted, weights.shape)


def _forward(plan: Dispatch, *arguments: Array) -> tuple[Array, tuple[Array, ...]]:
    return dispatch(plan, *arguments), arguments


def _backward(plan: Dispatch, arguments: tuple[Array, ...], cotangent: Array) -> tuple[Any, ...]:
    weights = arguments[1]
    rows, scales, traffic, full = _prepare(plan, *arguments)
    wanted = cotangent[traffic.sorted.order // weights.shape[1]]

    def one(number: Array, so_far: tuple[Any, ...]) -> tuple[Any, ...]:
        d_rows, d_scales, d_full = so_far
        window = _Window(plan, traffic, number)
        _, pull = jax.vjp(partial(_run, plan, window.sizes), window.take(rows), window.take(scales), *full)
        d_window, d_scale, *d_weights = pull(window.take(wanted))
        d_full = tuple(a + b for a, b in zip(d_full, d_weights, strict=True))
        return window.give(d_window, d_rows), window.give(d_scale, d_scales), d_full

    start = (jnp.zeros_like(rows), jnp.zeros_like(scales), tuple(jnp.zeros_like(w) for w in full))
    d_rows, d_scales, d_full = _in_rounds(plan, traffic, one, start)
    d_x = _sum_rows(d_rows, traffic.sorted, weights.shape)
    d_weights = d_scales[traffic.sorted.places].reshape(weights.shape)
    return d_x, d_weights, None, *(_scatter(plan, d, axis) for d, axis in zip(d_full, _FSDP_DIMS, strict=True))


dispatch.defvjp(_forward, _backward)

_FSDP_DIMS = (2, 2, 1)  # the dimension of gate, up and down that is split over `fsdp_axes`: D


def _prepare(
    plan: Dispatch, x: Array, weights: Array, experts: Array, *matrices: Array
) -> tuple[Array, Array, _Traffic, tuple[Array, ...]]:
    """Rows and weights in order of expert, the traffic, and the experts' matrices gathered."""
    traffic = _traffic(plan, experts, matrices[0].shape[0])
    rows = x[traffic.sorted.order // weights.shape[1]]
    scales = weights.reshape(-1, 1)[traffic.sorted.order]
    full = tuple(
        jax.lax.all_gather(w, plan.fsdp_axes, axis=axis, tiled=True) if plan.fsdp_axes else w
        for w, axis in zip(matrices, _FSDP_DIMS, strict=True)
    )
    return rows, scales, traffic, full


def _traffic(plan: Dispatch, experts: Int[Array, "T X"], local: int) -> _Traffic:
    mine = expert_counts(experts, plan.devices * local)
    counts = mine[None] if plan.axis is None else jax.lax.all_gather(mine, plan.axis)  # [sender, E]
    sources = jnp.cumsum(counts, axis=1) - counts
    by_owner = [a.reshape(-1, plan.devices, local).transpose(1, 2, 0) for a in (counts, sources)]
    sequence = by_owner[0].reshape(plan.devices, -1)
    begins = (jnp.cumsum(sequence, axis=1) - sequence).reshape(by_owner[0].shape)
    rounds = -(-jnp.max(jnp.sum(sequence, axis=1)) // plan.rows)
    # All devices of the mesh go round equally often, so that no collective waits for one that has left the loop.
    rounds = jax.lax.pmax(rounds, plan.mesh_axes)
    return _Traffic(sort_assignments(experts), by_owner[0], begins, by_owner[1], rounds)


def _in_rounds(plan: Dispatch, traffic: _Traffic, one: Callable[[Array, Any], Any], start: Any) -> Any:
    if plan.rows >= plan.worst:
        return one(jnp.int32(0), start)
    return jax.lax.fori_loop(jnp.int32(0), traffic.rounds, one, start)


class _Window:
    """Round `number`: rows number * R to (number + 1) * R of every owner's sequence.

    Attributes:
      sizes: int32[L], rows of each of this device's experts in it.
    """

    def __init__(self, plan: Dispatch, traffic: _Traffic, number: Int[Array, ""]) -> None:
        self._plan = plan
        self._number = number
        first = number * plan.rows
        low = jnp.clip(traffic.begins, first, first + plan.rows)
        count = jnp.clip(traffic.begins + traffic.counts, first, first + plan.rows) - low
        me = 0 if plan.axis is None else jax.lax.axis_index(plan.axis)
        at_owner = jnp.where(count > 0, low - first, 0)
        at_sender = jnp.where(count > 0, traffic.sources + low - traffic.begins, 0)
        # What goes out is listed by owner and expert, what comes in by sender and expert.
        self._out = [a[:, :, me].reshape(-1) for a in (at_sender, count, at_owner)]
        self._in = [a[me].T.reshape(-1) for a in (at_sender, count, at_owner)]
        self.sizes = jnp.sum(count[me], axis=1)

    def take(self, rows: Float[Array, "A D"]) -> Float[Array, "R D"]:
        """Every sender's rows of this round, at their owners."""
        if self._plan.axis is None:
            return rows
        (source, sent, target), (_, received, _) = self._out, self._in
        # XLA:TPU exchanges a copy of the rows in another layout. Tied to the round it is made in the round and gone
        # after it; else it would be made before the loop and kept beside the rows.
        rows, _ = jax.lax.optimization_barrier((rows, self._number))
        buffer = jnp.zeros((self._plan.rows, *rows.shape[1:]), rows.dtype)
        return ragged_all_to_all(rows, buffer, source, sent, target, received, self._plan.axis)

    def give(self, results: Float[Array, "R D"], returned: Float[Array, "A D"]) -> Float[Array, "A D"]:
        """`returned` with this round's results at the places that their rows were taken from."""
        if self._plan.axis is None:
            return results
        (target, received, source), (_, sent, _) = self._in, self._out
        return ragged_all_to_all(results, returned, source, received, target, sent, self._plan.axis)


def _run(plan: Dispatch, sizes: Array, rows: Array, weights: Array, gate: Array, up: Array, down: Array) -> Array:
    usual = None if plan.axis is None else plan.usual  # without an exchange the rows are there exactly
    with jax.named_scope("experts"):
        return grouped_swiglu(rows, gate, up, down, weights, sizes, plan.implementation, usual)


def _sum_rows(rows: Float[Array, "A D"], sort: Sorted, shape: tuple[int, ...]) -> Float[Array, "T D"]:
    return sum_experts(rows[sort.places].reshape(*shape, rows.shape[1])).astype(rows.dtype)


def _scatter(plan: Dispatch, gradient: Float[Array, "L O I"], axis: int) -> Array:
    """Summed over `fsdp_axes` and split along `axis`.

    Along the last dimension the matrices are transposed in memory first: XLA:TPU turns a reduce-scatter into a few
    columns of each row into an all-reduce, which sends twice the bytes and leaves the whole on every device.
    """
    if not plan.fsdp_axes:
        return gradient
    if axis == 1:
        return jax.lax.psum_scatter(gradient, plan.fsdp_axes, scatter_dimension=1, tiled=True)
    turned = with_layout_constraint(gradient.swapaxes(1, 2), Layout((0, 1, 2)))
    return _scatter(plan, turned, 1).swapaxes(1, 2)
