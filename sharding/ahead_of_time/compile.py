"""Compiles a program for devices that are not here, and says what it needs; running out of memory is an answer too."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import NamedSharding

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One of the largest things in memory: bytes on one device, and what the compiler or the caller calls it."""

    bytes: int
    what: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of compiling for one device of many.

    Attributes:
      fits: whether the compiler found room.
      peak_bytes: most memory at a time, arguments included; where it does not fit, the compiler's count, or None if it
        gives none.
      text: the compiled program; "" where there is none.
      buffers: the largest ones the compiler names when it does not fit.
      seconds: of lowering and compiling.
    """

    fits: bool
    peak_bytes: int | None
    text: str
    buffers: tuple[Buffer, ...]
    seconds: float


def compile_ahead(function: Any, *arguments: Any, **static: Any) -> Outcome:
    """Lowers a jitted function for abstract arguments and compiles it for the devices of their shardings."""
    began = time.perf_counter()
    lowered = function.lower(*arguments, **static)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message and "CompileTimeHbmOom" not in message:
            raise
        if "vmem" in message.lower() and "hbm" not in message.lower():
            raise
        needed, buffers = read_out_of_memory(message)
        return Outcome(False, needed, "", buffers, time.perf_counter() - began)
    peak = int(compiled.memory_analysis().peak_memory_in_bytes)
    return Outcome(True, peak, compiled.as_text(), (), time.perf_counter() - began)


def read_out_of_memory(message: str) -> tuple[int | None, tuple[Buffer, ...]]:
    """What a failed compilation says it needs, and its largest buffers.

    In:  "... Used 24.00G of 15.75G hbm. ... 1. Size: 16.00G\\n Shape: f32[8,4]{1,0}\\n ..."
    Out: 24 GiB, (Buffer(16 GiB, "f32[8,4]{1,0}"),)
    """
    found = re.search(r"Used ([\d.]+)([BKMGT]) of [\d.]+[BKMGT] hbm", message)
    found = found or re.search(r"temporaries \(([\d.]+)([BKMGT])\)", message)
    needed = _bytes(found[1], found[2]) if found else None
    buffers = []
    for part in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"([\d.]+)([BKMGT])", part)
        shape = re.search(r"Shape: (\S+)", part)
        name = re.search(r'op_name="([^"]*)"', part)
        if size and shape:
            buffers.append(Buffer(_bytes(size[1], size[2]), shape[1] + (f" {name[1]}" if name else "")))
    return needed, tuple(buffers)


def local_bytes(tree: Any) -> int:
    """Bytes that one device keeps of a tree of `jax.ShapeDtypeStruct` with shardings."""

    def of(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return int(math.prod(shape) * leaf.dtype.itemsize)

    return sum(map(of, jax.tree.leaves(tree)))


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes with the shardings of another tree of the same structure, or with one sharding for all."""
    if isinstance(shardings, NamedSharding):
        return abstract(tree, jax.tree.map(lambda _: shardings, tree))
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])
