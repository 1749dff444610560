"""Experts spread over the devices of a mesh: one `jax.shard_map` over all of its axes.

Each device has its own tokens (`batch` and `sequence`; the same on all devices of `tensor`) and its own experts
(`expert`), of which the features are split over `tensor` and the model's dimension, while they wait, over `fsdp`.
Tokens meet experts in one of two ways, chosen from static shapes by `choose_form`:

  dispatch   tokens go to the owners of their experts and come back (all-to-all), see `experts.dispatch`. Also when
             every device has all experts: then nothing is sent.
  gather     every device gets the tokens of all devices that share its experts (all-gather), runs its experts on those
             that chose them, and the sums go back (reduce-scatter). For few tokens, when decoding: two exchanges of
             known size, whatever the router says.

Dimensions: N tokens, X experts per token, E experts, L experts of this device.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.dispatch import Dispatch, dispatch
from qwen3_jax.experts.execution import choose_execution
from qwen3_jax.experts.grouped import GroupedBackend, grouped_swiglu
from qwen3_jax.experts.router import RouterReport, Routing, RowSums, expert_counts, route, row_sums
from qwen3_jax.experts.sorting import permute, sort_assignments, sum_experts
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import DEFAULT_RULES, Rules, axes_of, current_mesh, dividing, logical_to_spec, mesh_size

Form = Literal["dispatch", "gather"]

_FEW_ROWS = 16  # rows an expert gets on average, up to which tokens are gathered: what a decoding step brings
_ONE_ROUND_BYTES = 16 * 2**20  # a receive buffer of this size is made for the worst load: one round without a loop
_SLACK = 1.25  # larger ones: times the balanced load. A busier owner takes another round
_ALIGNMENT = 256  # rows of a buffer, for kernels that work in blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshLayout:
    """How the arrays of one call lie on the mesh.

    Attributes:
      tokens: mesh axes that split the tokens.
      experts: the mesh axis that splits the experts; None when there is one device along it.
      devices: size of that axis.
      feature_axes: mesh axes that split the experts' features.
      fsdp_axes: mesh axes that split the experts' weights until they are used.
      mesh_axes: all of them.
      num_tokens: tokens of one device.
      x: layout of the activations.
    """

    tokens: tuple[str, ...]
    experts: str | None
    devices: int
    feature_axes: tuple[str, ...]
    fsdp_axes: tuple[str, ...]
    mesh_axes: tuple[str, ...]
    num_tokens: int
    x: PartitionSpec


def expert_parallel(
    x: Float[Array, "B T D"],
    params: Params,
    config: ModelConfig,
    backend: str = "auto",
    rules: Rules = DEFAULT_RULES,
    form: Form | None = None,
    counted: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], RouterReport]:
    """`qwen3_jax.experts.mixture.moe` on the current mesh; the arguments are the same.

    Args:
      form: how tokens meet experts; `choose_form` decides when left out.
      counted: as in `moe`.

    Raises:
      ValueError: an unknown backend, or rules that spread the experts over more than one mesh axis.
    """
    layout = _layout(x.shape, rules)
    form = form or choose_form(layout, config)
    execution = choose_execution(backend)
    if execution not in get_args(GroupedBackend):
        execution = choose_execution("grouped")
    implementation = cast(GroupedBackend, execution)
    up, down = ("expert", "expert_mlp", "expert_embed"), ("expert", "expert_embed", "expert_mlp")
    matrices = tuple(logical_to_spec(axes, rules) for axes in (up, up, down))
    hidden = layout.feature_axes if x.shape[-1] % mesh_size(layout.feature_axes) == 0 else ()
    local = partial(_local, config=config, layout=layout, form=form, implementation=implementation, hidden=hidden)
    of_rows = None if counted is None else PartitionSpec(layout.x[0])
    mixed, logits, load, rows = jax.shard_map(
        local,
        in_specs=(layout.x, None if counted is None else PartitionSpec(*layout.x[:2]), PartitionSpec(), *matrices),
        out_specs=(PartitionSpec(*layout.x[:2], hidden or None), layout.x, PartitionSpec(), of_rows),
        check_vma=False,
    )(x, counted, params["router"], *(params[f"experts_{name}_proj"] for name in ("gate", "up", "down")))
    return mixed, RouterReport(logits, load, rows)


def choose_form(layout: MeshLayout, config: ModelConfig) -> Form:
    """`gather` while an expert gets few rows, and where the tokens are not spread as the experts are."""
    if layout.experts is None:
        return "dispatch"
    rows = layout.num_tokens * layout.devices * config.num_experts_per_tok / config.num_experts
    return "gather" if rows <= _FEW_ROWS or layout.experts not in layout.tokens else "dispatch"


def round_rows(num_tokens: int, per_token: int, devices: int, local_experts: int, row_bytes: int) -> tuple[int, int]:
    """Rows of the receive buffer, and rows it would need for any load (a token has at most `local_experts` experts, all
    different, on one device).

    In:  4096 tokens, 8 experts each, 8 devices of 16 experts, rows of 8 KiB       Out: 40960 (320 MiB), 262144
    In:  256 tokens of the same                                                    Out: 2560, 16384
    In:  16 tokens of the same                                                     Out: 1024, 1024 (8 MiB: one round)
    """
    worst = devices * num_tokens * min(per_token, local_experts)
    if worst * row_bytes <= _ONE_ROUND_BYTES:
        return worst, worst
    rows = math.ceil(_SLACK * num_tokens * per_token / _ALIGNMENT) * _ALIGNMENT
    return min(rows, worst), worst


def _layout(shape: tuple[int, ...], rules: Rules) -> MeshLayout:
    experts = tuple(axis for axis in axes_of("expert", rules) if mesh_size((axis,)) > 1)
    if len(experts) > 1:
        raise ValueError(f"the rule of 'expert' must name one mesh axis, got {experts}: change it")
    # One row, or one token of a decoding step, may be less than the devices there are: the others have it too.
    batch, sequence = (
        dividing(size, axes_of(name, rules)) for size, name in zip(shape, ("batch", "sequence"), strict=False)
    )
    return MeshLayout(
        tokens=batch + sequence,
        experts=experts[0] if experts else None,
        devices=mesh_size(experts),
        feature_axes=axes_of("expert_mlp", rules) if mesh_size(axes_of("expert_mlp", rules)) > 1 else (),
        fsdp_axes=axes_of("expert_embed", rules) if mesh_size(axes_of("expert_embed", rules)) > 1 else (),
        mesh_axes=tuple(current_mesh().axis_names),
        num_tokens=shape[0] * shape[1] // mesh_size(batch + sequence),
        x=PartitionSpec(batch or None, sequence or None, None),
    )


def _local(
    x: Array,
    counted: Array | None,
    router: Array,
    gate: Array,
    up: Array,
    down: Array,
    *,
    config: ModelConfig,
    layout: MeshLayout,
    form: Form,
    implementation: GroupedBackend,
    hidden: tuple[str, ...],
) -> tuple[Array, Array, Array, RowSums | None]:
    """What one device does; `hidden` are the mesh axes that the model's dimension of the result is split over."""
    tokens = x.reshape(-1, x.shape[-1])
    run = _dispatched if form == "dispatch" else _gathered
    mixed, routing, load = run(tokens, router, (gate, up, down), config, layout, implementation)
    if hidden:  # each device has a part of the features, so a part of every sum
        mixed = jax.lax.psum_scatter(mixed, hidden, scatter_dimension=1, tiled=True)
    elif layout.feature_axes:
        mixed = jax.lax.psum(mixed, layout.feature_axes)
    rows = None
    if counted is not None:
        rows, axes = row_sums(routing, counted), layout.x[1]
        rows = jax.tree.map(lambda part: jax.lax.psum(part, axes), rows) if axes else rows
        load, axes = jnp.sum(rows.assignments, axis=0), layout.x[0]
        load = jax.lax.psum(load, axes) if axes else load
    logits = routing.logits.reshape(*x.shape[:2], -1)
    return mixed.astype(x.dtype).reshape(*x.shape[:2], -1), logits, load, rows


def _dispatched(
    x: Array, router: Array, matrices: tuple[Array, ...], config: ModelConfig, layout: MeshLayout, implementation: Any
) -> tuple[Array, Routing, Array]:
    per_token = config.num_experts_per_tok
    routing = route(x, router, per_token, config.norm_topk_prob)
    rows, worst = round_rows(x.shape[0], per_token, layout.devices, matrices[0].shape[0], x.shape[1] * x.itemsize)
    plan = Dispatch(
        axis=layout.experts,
        devices=layout.devices,
        fsdp_axes=layout.fsdp_axes,
        mesh_axes=layout.mesh_axes,
        rows=rows,
        worst=worst,
        usual=min(rows, x.shape[0] * per_token),
        implementation=implementation,
    )
    mixed = dispatch(plan, x, routing.weights, routing.experts, *matrices)
    load = expert_counts(routing.experts, config.num_experts)
    return mixed, routing, jax.lax.psum(load, layout.tokens) if layout.tokens else load


def _gathered(
    x: Array, router: Array, matrices: tuple[Array, ...], config: ModelConfig, layout: MeshLayout, implementation: Any
) -> tuple[Array, Routing, Array]:
    axis, spread = layout.experts, layout.experts in layout.tokens
    assert axis is not None
    all_tokens = jax.lax.all_gather(x, axis, tiled=True) if spread else x
    routing = route(all_tokens, router, config.num_experts_per_tok, config.norm_topk_prob)
    gate, up, down = (
        jax.lax.all_gather(w, layout.fsdp_axes, axis=dim, tiled=True) if layout.fsdp_axes else w
        for w, dim in zip(matrices, (2, 2, 1), strict=True)
    )
    mixed = _own_experts(all_tokens, routing, gate, up, down, axis, layout.devices, implementation)
    load = expert_counts(routing.experts, config.num_experts)
    others = tuple(name for name in layout.tokens if name != axis)
    load = jax.lax.psum(load, others) if others else load
    if not spread:
        return jax.lax.psum(mixed, axis), routing, load
    mixed = jax.lax.psum_scatter(mixed, axis, scatter_dimension=0, tiled=True)
    mine = jax.lax.axis_index(axis) * x.shape[0]
    own = Routing(*(jax.lax.dynamic_slice_in_dim(part, mine, x.shape[0]) for part in routing))
    return mixed, own, load


def _own_experts(
    x: Float[Array, "N D"],
    routing: Routing,
    gate: Array,
    up: Array,
    down: Array,
    axis: str,
    devices: int,
    implementation: GroupedBackend,
) -> Float[Array, "N D"]:
    """The part of every token's weighted sum that this device's experts give, in float32."""
    num_tokens, per_token = routing.experts.shape
    local = gate.shape[0]
    expert = routing.experts - jax.lax.axis_index(axis) * local
    mine = (expert >= 0) & (expert < local)
    expert = jnp.where(mine, expert, local)  # the others' assignments are sorted behind
    order, places = sort_assignments(expert)
    rows = permute(jnp.repeat(x, per_token, axis=0), order, places)
    weights = jnp.where(mine, routing.weights, jnp.zeros((), routing.weights.dtype))
    weights = permute(weights.reshape(-1, 1), order, places)
    sizes, usual = expert_counts(expert, local + 1)[:local], max(rows.shape[0] // devices, 1)
    with jax.named_scope("experts"):
        rows = grouped_swiglu(rows, gate, up, down, weights, sizes, implementation, usual)
    return sum_experts(permute(rows, places, order).reshape(num_tokens, per_token, -1))
