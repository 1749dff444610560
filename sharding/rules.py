"""From logical axes to mesh axes: the one table that decides how every array of a model is laid out.

A model names the dimensions of its arrays ("vocab", "embed", ...). `DEFAULT_RULES` says over which axes of the mesh
each of them is split, so that another layout is another table and not another model.
"""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jax.sharding import PartitionSpec

DATA = "data"  # different sequences, replicated parameters
FSDP = "fsdp"  # different sequences, parameters split and gathered where they are used
EXPERT = "expert"  # different experts of a mixture
CONTEXT = "context"  # different parts of one sequence
TENSOR = "tensor"  # different heads, features and vocabulary rows
MESH_AXES = (DATA, FSDP, EXPERT, CONTEXT, TENSOR)  # in the order of a mesh: the last axis is the closest in the network

Rules = Mapping[str, str | tuple[str, ...] | None]

DEFAULT_RULES: Rules = MappingProxyType(
    {
        # activations
        "batch": (DATA, FSDP, EXPERT),
        "sequence": CONTEXT,
        # parameters
        "layers": None,  # the axis of `scan`
        "vocab": TENSOR,
        "embed": FSDP,
        "heads": TENSOR,
        "kv_heads": TENSOR,
        "head_dim": None,
        "mlp": TENSOR,
        "router": None,  # every device routes over all experts
        "expert": EXPERT,
        "expert_mlp": TENSOR,
    }
)


def logical_to_spec(axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> PartitionSpec:
    """The layout of an array whose dimensions have the logical names `axes`; None is a dimension that stays whole.

    In:  ("layers", "heads", "embed")
    Out: PartitionSpec(None, "tensor", "fsdp")

    Raises:
      ValueError: a logical axis that the rules do not name, a rule onto an axis that no mesh has, or two dimensions of
        this array on one mesh axis (each mesh axis can split only one of them).
    """
    owner: dict[str, str] = {}
    entries: list[str | tuple[str, ...] | None] = []
    for logical in axes:
        entry = None if logical is None else _lookup(logical, rules)
        for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
            assert logical is not None
            if mesh_axis in owner:
                raise ValueError(
                    f"one mesh axis can split one dimension, got {mesh_axis!r} for both {owner[mesh_axis]!r} and "
                    f"{logical!r} of {tuple(axes)}: change the rule of one of them"
                )
            owner[mesh_axis] = logical
        entries.append(entry)
    return PartitionSpec(*entries)


def _lookup(logical: str, rules: Rules) -> str | tuple[str, ...] | None:
    if logical not in rules:
        near = difflib.get_close_matches(logical, rules, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known are {sorted(rules)}"
        raise ValueError(f"a logical axis must be one that the rules name, got {logical!r}: {remedy}")
    entry = rules[logical]
    for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
        if mesh_axis not in MESH_AXES:
            raise ValueError(f"a rule must name axes of {MESH_AXES}, got {mesh_axis!r} for {logical!r}: correct it")
    return entry
