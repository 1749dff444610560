"""From logical axes to mesh axes: the one table that decides how every array of a model is laid out.

A model names the dimensions of its arrays ("vocab", "embed", ...). `DEFAULT_RULES` says over which axes of the mesh
each of them is split, so that another layout is another table and not another model.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from jax.sharding import PartitionSpec

DATA = "data"  # different sequences, replicated parameters
FSDP = "fsdp"  # different sequences, parameters split and gathered where they are used
EXPERT = "expert"  # different sequences, different experts of a mixture; for everything else as `fsdp`
CONTEXT = "context"  # different parts of one sequence
TENSOR = "tensor"  # different heads, features and vocabulary rows
MESH_AXES = (DATA, FSDP, EXPERT, CONTEXT, TENSOR)  # in the order of a mesh: the last axis is the closest in the network

Entry = str | tuple[str, ...] | None


class Rules(Mapping[str, Entry]):
    """An immutable table; hashable, so that a compiled function can depend on it."""

    def __init__(self, table: Mapping[str, Entry | list[str]]) -> None:
        self._table = {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in table.items()}

    def __getitem__(self, name: str) -> Entry:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __hash__(self) -> int:
        return hash(frozenset(self._table.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self._table == other._table

    def __repr__(self) -> str:
        return f"Rules({self._table!r})"

    def override(self, changes: Mapping[str, Entry | list[str]]) -> "Rules":
        """This table with some rules changed.

        Raises:
          ValueError: a logical axis that the table does not have, or a mesh axis that does not exist.
        """
        for name, entry in changes.items():
            _lookup(name, self)
            for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
                _check_mesh_axis(mesh_axis, name)
        return Rules({**self, **changes})


DEFAULT_RULES = Rules(
    {
        # activations
        "batch": (DATA, FSDP, EXPERT),
        "lookup_batch": DATA,  # rows while the embedding is looked up by columns, which `embed` splits
        "sequence": CONTEXT,
        "cache_heads": TENSOR,  # key-value heads, copied where there are fewer of them than devices
        "cache_length": None,  # keys and values are gathered over `context`
        # parameters; "heads", "mlp", "vocab" and "head_dim" also name what activations have of them
        "layers": None,  # the axis of `scan`
        "vocab": TENSOR,
        "embed": (FSDP, EXPERT),
        "heads": TENSOR,
        "kv_heads": TENSOR,
        "head_dim": None,
        "mlp": TENSOR,
        "norm": None,
        "rank": None,  # of low-rank adapters
        "router": None,  # every device routes over all experts
        "router_embed": (FSDP, EXPERT),
        "expert": EXPERT,
        "expert_mlp": TENSOR,
        "expert_embed": FSDP,
    }
)

# What a weight is split over only while it waits: gathered where it is used.
GATHERED = ("embed", "expert_embed", "router_embed")


def logical_to_spec(axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> PartitionSpec:
    """The layout of an array whose dimensions have the logical names `axes`; None is a dimension that stays whole.

    In:  ("layers", "heads", "embed")
    Out: PartitionSpec(None, "tensor", ("fsdp", "expert"))

    Raises:
      ValueError: a logical axis that the rules do not name, a rule onto an axis that no mesh has, or two dimensions of
        this array on one mesh axis (each mesh axis can split only one of them).
    """
    owner: dict[str, str] = {}
    entries: list[Entry] = []
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


def axes_of(logical: str, rules: Rules = DEFAULT_RULES) -> tuple[str, ...]:
    """The mesh axes that split a logical axis.

    In: "batch"     Out: ("data", "fsdp", "expert")
    """
    entry = _lookup(logical, rules)
    return (entry,) if isinstance(entry, str) else entry or ()


def _lookup(logical: str, rules: Rules) -> Entry:
    if logical not in rules:
        near = difflib.get_close_matches(logical, rules, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known are {sorted(rules)}"
        raise ValueError(f"a logical axis must be one that the rules name, got {logical!r}: {remedy}")
    entry = rules[logical]
    for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
        _check_mesh_axis(mesh_axis, logical)
    return entry


def _check_mesh_axis(mesh_axis: str, logical: str) -> None:
    if mesh_axis not in MESH_AXES:
        raise ValueError(f"a rule must name axes of {MESH_AXES}, got {mesh_axis!r} for {logical!r}: correct it")
