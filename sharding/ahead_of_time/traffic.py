"""What a compiled program sends: kind, bytes, how often, and along which axes of the mesh; and how long that takes."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.sharding.ahead_of_time.chips import Chip
from qwen3_jax.sharding.ahead_of_time.hlo import Program, shape_bytes

# The last one is between slices.
KINDS = (
    "all-gather reduce-scatter all-reduce all-to-all ragged-all-to-all collective-permute collective-broadcast send"
).split()


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that communicates.

    Attributes:
      axes: mesh axes along which its groups lie.
      group_size: devices of a group.
      operand_bytes: of one device's operand, in one run.
      bytes: that one device receives in one run, by the least that the kind needs: of an all-gather everything but its
        own part, of an all-reduce twice that of a reduce-scatter.
      runs: in one call of the program.
      op_name: what the source calls it.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    operand_bytes: int
    bytes: int
    runs: int
    name: str
    op_name: str
    shape: str

    @property
    def total_bytes(self) -> int:
        return self.bytes * self.runs


def communication(program: Program, mesh: Mesh) -> list[Collective]:
    """All of them, in the order of the text. The program's devices are those of the mesh, in its order.

    The TPU compiler writes a collective that runs beside other work as several fusions (its start, the work, its end),
    each of which repeats it: they carry the same chain and channel, and count once.
    """
    found = []
    seen: set[tuple[str, ...]] = set()
    for computation, runs in program.runs.items():
        body = program.computations[computation]
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if chain and channel:
                caller = program.callers.get(computation, computation)
                if (caller, chain[1], channel[1]) in seen:
                    continue
                seen.add((caller, chain[1], channel[1]))
            operands = [shape_bytes(body[name].shape) for name in instruction.operands if name in body]
            operand_bytes = min(operands[:2]) if kind == "ragged-all-to-all" else sum(operands)
            if kind == "collective-permute":
                operand_bytes = operands[0]
            group = [0, 1] if kind == "send" else first_group(instruction.attributes, mesh.size)
            axes = ("slices",) if kind == "send" else axes_of_group(group, mesh)
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # how the TPU compiler writes a fused one
            if (size := len(group)) > 1:
                named = re.search(r'op_name="([^"]*)"', instruction.attributes)
                moved, op_name = moved_bytes(kind, operand_bytes, size), named[1] if named else ""
                traits = (instruction.name, op_name, instruction.shape)
                found.append(Collective(kind, axes, size, operand_bytes, moved, runs, *traits))
    return found


def moved_bytes(kind: str, operand_bytes: int, size: int) -> int:
    """Bytes one device receives.

    In: "all-gather", 100, 4 -> 300     "reduce-scatter", 400, 4 -> 300     "all-reduce", 400, 4 -> 600
    """
    if kind == "all-gather":
        return operand_bytes * (size - 1)
    if kind in ("collective-permute", "send", "collective-broadcast"):
        return operand_bytes
    return (2 if kind == "all-reduce" else 1) * operand_bytes * (size - 1) // size


def first_group(attributes: str, num_devices: int) -> list[int]:
    """Devices of the first replica group (a group's devices differ in the same axes in every group).

    In:  "replica_groups={{0,2},{1,3}}"                          Out: [0, 2]
         "replica_groups=[2,2]<=[2,2]T(1,0)"                     Out: [0, 2]
         "replica_groups=mesh['a'=2,'b'=2] {'a'}"                Out: [0, 2]
         "source_target_pairs={{0,2},{2,0},{1,3},{3,1}}"         Out: [0, 2]
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        following = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])}
        return _chain(following)
    if listed := re.search(r"replica_groups=\{(?:\{([\d,]+)\}.*?)?\}", attributes):
        return [int(device) for device in listed[1].split(",")] if listed[1] else list(range(num_devices))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims = (tuple(map(int, iota[index].split(","))) for index in (1, 2))
        devices = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            devices = devices.transpose(tuple(map(int, iota[3].split(","))))
        return [int(device) for device in devices.reshape(shape)[0]]
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        return _mesh_group(meshed[1], meshed[2])
    return list(range(num_devices))


def _chain(following: dict[int, int]) -> list[int]:
    """Devices that a permutation connects with the first one."""
    group = [min(following)]
    while (after := following.get(group[-1])) is not None and after not in group:
        group.append(after)
    return sorted(group)


def _mesh_group(axes: str, named: str) -> list[int]:
    """Of a group written by axes: 'a'=2,'b'=4 and 'b', or 'b':(2)2 for a part of b (2 steps before it, 2 long)."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    stride, total = {}, 1
    for name in reversed(sizes):
        stride[name], total = total, total * sizes[name]
    group = [0]
    for name, before, length in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named):
        size = int(length) if length else sizes[name]
        step = stride[name] * (sizes[name] // (int(before) * size) if length else 1)
        group = [device + step * index for device in group for index in range(size)]
    return group


def axes_of_group(group: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    """The axes in which devices of a group differ.

    In: [0, 2] on a mesh fsdp=2, tensor=2     Out: ("fsdp",)
    """
    places = np.unravel_index(np.asarray(group), mesh.devices.shape)
    return tuple(name for name, place in zip(mesh.axis_names, places, strict=True) if len(set(place.tolist())) > 1)


def seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    """Least time of all runs of a collective, links being used in every direction that it has.

    A group that lies along several dimensions of the torus uses the links of all of them; a dimension that is not a
    ring has one way instead of two. An all-to-all is held to the bisection: on a ring of n a byte goes n/4 links far
    on average. Devices that share a chip share its links.
    """
    return collective.runs * group_seconds(collective.kind, collective.bytes, collective.axes, chip, mesh)


def group_seconds(kind: str, moved: float, axes: Sequence[str], chip: Chip, mesh: Any) -> float:
    """The same for one run of `moved` bytes."""
    if not chip.torus:
        return _switched_seconds(kind, moved, _group_along(axes, mesh), chip)
    moved = moved * chip.devices
    extents = physical_extents(axes, chip, mesh)
    if extents is None:
        return moved / chip.dcn_bandwidth
    links = [2 if size % chip.wrap == 0 else 1 for size in extents]
    if not links:  # the two devices of one chip
        return moved / (6 * chip.link_bandwidth)
    if kind.endswith("all-to-all"):
        hops = (size / 4 / ways for size, ways in zip(extents, links, strict=True))
        return moved * max(hops) / chip.link_bandwidth
    if kind == "collective-permute":
        return moved / chip.link_bandwidth
    return moved / (chip.link_bandwidth * sum(links))


def _switched_seconds(kind: str, moved: float, group: Sequence[Any], chip: Chip) -> float:
    """On hosts of GPUs: a switch joins those of a host, and each has a network card of its own to the other hosts.

    What a whole host needs from the others comes to it once, by the cards of all GPUs of the group, and is handed on
    inside: gathers, scatters and reductions. Rows of an all-to-all, and a permutation, are for one GPU each.

    In:  an all-gather of which each of 16 GPUs on 2 hosts receives 15 parts
    Out: the longer of 15 parts by NVLink, and 8 parts by the 8 network cards of a host
    """
    inside = moved / chip.link_bandwidth
    hosts = len({device.process_index for device in group})
    if hosts == 1 or len(group) == 1:
        return inside
    whole = moved * len(group) / (len(group) - 1)
    if kind in ("collective-permute", "send", "collective-broadcast"):
        between = moved
    elif kind.endswith("all-to-all"):
        between = whole * (hosts - 1) / hosts
    else:
        between = whole * (hosts - 1) / hosts / (len(group) / hosts)
    return max(inside, between / chip.dcn_bandwidth)


def _group_along(axes: Sequence[str], mesh: Any) -> list[Any]:
    """Devices of the first group along these axes."""
    index = tuple(slice(None) if name in axes else slice(1) for name in mesh.axis_names)
    return list(np.asarray(mesh.devices, dtype=object)[index].flat)


def physical_extents(axes: Sequence[str], chip: Chip, mesh: Any) -> list[int] | None:
    """Sizes, in TPU chips, of the torus dimensions that a group along these axes spans; None if it leaves the slice.

    In: ("tensor",) of a mesh whose tensor axis lies on 4 chips of one dimension     Out: [4]
    """
    if "slices" in axes:
        return None
    group = _group_along(axes, mesh)
    if len({getattr(device, "slice_index", None) for device in group}) > 1:
        return None
    if not chip.torus or getattr(group[0], "coords", None) is None:
        return []
    places = np.array([device.coords for device in group])
    return [size for size in (len(set(column.tolist())) for column in places.T) if size > 1]
