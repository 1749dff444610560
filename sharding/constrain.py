"""Layouts of arrays inside compiled functions, by logical axes. Without a mesh all of it is the identity."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from qwen3_jax.sharding.rules import DEFAULT_RULES, GATHERED, MESH_AXES, Rules, axes_of, logical_to_spec

T = TypeVar("T")


def current_mesh() -> Any:
    """The mesh that `jax.set_mesh` has set, as the compiled function will know it; None when there is none or it has
    one device, where nothing is to be said about layouts.

    Raises:
      ValueError: its axes are not the five of this project, or they are Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    if set(mesh.axis_names) != set(MESH_AXES):
        raise ValueError(
            f"the mesh must have the axes {MESH_AXES}, got {mesh.axis_names}: make it with sharding.make_mesh"
        )
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        raise ValueError("the mesh must have Auto axes, got Explicit ones: make it with sharding.make_mesh")
    return mesh


def mesh_size(axes: Sequence[str]) -> int:
    """Product of the sizes of these axes of the current mesh; 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in axes)


def dividing(size: int, axes: Sequence[str]) -> tuple[str, ...]:
    """The first of these mesh axes over which a dimension divides: one row, or one token of a decoding step, may be
    less than the devices there are, and the others then have it too.

    In:  6, ("data", "fsdp", "expert") of sizes 2, 2 and 1     Out: ("data",)
    """
    count = len(axes)
    while size % mesh_size(axes[:count]):
        count -= 1
    return tuple(axes[:count])


def spec_of(shape: Sequence[int], axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> PartitionSpec:
    """`logical_to_spec` for an array of this shape on the current mesh: without the mesh axes that do not divide it."""
    spec = logical_to_spec(axes, rules)
    whole = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return PartitionSpec(*(dividing(size, entry) or None for size, entry in zip(shape, whole, strict=True)))


def constrain(x: Array, axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> Array:
    """`x` laid out on the current mesh by its logical axes."""
    if current_mesh() is None or _manual():
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(x.shape, axes, rules))


def row_major(x: Array, axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> Array:
    """`x`, kept in memory in the order of its dimensions (the last one contiguous) where the compiler would choose
    another order, and laid out on the current mesh by its logical axes.

    The constraint is said of each device's part: of the whole array, the partitioner would gather it first.
    """

    def pin(part: Array) -> Array:
        return with_layout_constraint(part, Layout(tuple(range(part.ndim))))

    if current_mesh() is None or _manual():
        return pin(x)
    layout = spec_of(x.shape, axes, rules)
    return jax.shard_map(pin, in_specs=layout, out_specs=layout, check_vma=False)(x)


def gather_weight(w: Array, axes: Sequence[str], rules: Rules = DEFAULT_RULES) -> Array:
    """A weight as it is multiplied: whole along the axes it is split over only while it waits (fsdp).

    The gradient goes the other way, straight to the layout of the parameter, so that it is reduced and scattered; the
    transpose of a plain constraint would reduce it whole on every device.
    """
    if current_mesh() is None or not any(axes_of(axis, rules) for axis in axes if axis in GATHERED):
        return w
    return _gather(w, tuple(_steps(axes, rules)))


def named_sharding(mesh: Mesh, axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Where an array with these logical axes lies on a mesh; mesh axes of size 1 are left out."""
    spec = logical_to_spec(axes, rules)
    return NamedSharding(mesh, PartitionSpec(*(_present(entry, mesh) for entry in spec)))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree lie on; None where they lie on one device without a mesh."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def put(x: Any, sharding: NamedSharding | None) -> Array:
    """A host array, the same on every process, laid out over the devices of all; each process sends its own parts."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda region: host[region])


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays, the same on every process, as arrays that every device has whole."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: put(x, whole), tree)


def under_mesh(mesh: Mesh | None, items: Iterator[T]) -> Iterator[T]:
    """The items of a generator whose steps run under `jax.set_mesh(mesh)`, and the code between them does not."""
    while True:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _present(entry: Any, mesh: Mesh) -> Any:
    names = (entry,) if isinstance(entry, str) else entry or ()
    kept = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    return kept[0] if len(kept) == 1 else kept or None


def _manual() -> bool:
    """Whether this is traced inside `shard_map`, where arrays are local already."""
    return any(kind == AxisType.Manual for kind in jax.sharding.get_abstract_mesh().axis_types)


def _steps(axes: Sequence[str], rules: Rules) -> Iterator[PartitionSpec]:
    """Layouts of a weight from waiting to used, one mesh axis after the other, the closest in the network first.

    The TPU compiler gathers over a group that is a whole three-dimensional slice by an all-reduce, of twice the bytes;
    over one axis of it after the other it gathers.

    In:  ("heads", "embed")     Out: P("tensor", ("fsdp", "expert")), P("tensor", ("fsdp",)), P("tensor", None)
    """
    waiting = max(len(axes_of(axis, rules)) for axis in axes if axis in GATHERED)
    for kept in range(waiting, -1, -1):
        table = {axis: axes_of(axis, rules)[:kept] or None for axis in axes if axis in GATHERED}
        yield logical_to_spec(axes, rules.override(table))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(w: Array, steps: tuple[PartitionSpec, ...]) -> Array:
    for layout in steps:
        w = jax.lax.with_sharding_constraint(w, layout)
    return w


def _gather_forward(w: Array, steps: tuple[PartitionSpec, ...]) -> tuple[Array, None]:
    return _gather(w, steps), None


def _gather_backward(steps: tuple[PartitionSpec, ...], _: None, dw: Array) -> tuple[Array]:
    # One axis after the other on the way back too: reduced over all of a slice at once, the gradient would leave by an
    # all-reduce. The first step reduces and scatters; what is left is small.
    for layout in reversed(steps[:-1]):
        dw = jax.lax.with_sharding_constraint(dw, layout)
    return (dw,)


_gather.defvjp(_gather_forward, _gather_backward)
