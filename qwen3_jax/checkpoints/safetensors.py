"""The safetensors format: headers, tensors read slice by slice into given buffers, files written tensor by tensor.

A file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes. Plain reads are used and
not a memory map: the bytes land once, in the buffer that becomes the parameter, and a cast needs one block of scratch.
Format: https://huggingface.co/docs/safetensors
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FLOATING = ("F64", "F32", "F16", "BF16")
DTYPES: dict[str, np.dtype] = {
    **dict(zip(FLOATING, map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16)), strict=True)),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (64, 32, 16, 8)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (64, 32, 16, 8)},
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
INDEX = "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK = 4 << 20  # bytes of scratch when a read is not a plain copy
_MAX_HEADER = 100_000_000  # the format's own bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
      dtype_name: as the header spells it ("BF16").
      offset: of its first byte in the file.
    """

    name: str
    path: Path
    dtype_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.dtype_name]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name, in the order of the header; reads the header only.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not safetensors, cut short, or a header that contradicts itself.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist: no such file, fetch the checkpoint again")
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or not 2 <= length <= _MAX_HEADER:
            raise ValueError(f"{path} must be a safetensors file, got {total} bytes without its header: fetch it again")
        if length > total - 8:
            raise ValueError(f"{path} must hold a header of {length} bytes, got {total - 8}: cut short, fetch it again")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path} must be a safetensors file, got a header that is not JSON: fetch it again")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    end = max((entry.offset + entry.nbytes for entry in entries.values()), default=8 + length)
    if end != total:
        what = "cut short" if end > total else "longer than its header says"
        raise ValueError(f"{path} must have {end} bytes, got {total}: {what}, fetch it again")
    return entries


def _entry(path: Path, name: str, value: Any, base: int) -> TensorEntry:
    try:
        dtype_name, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        sound = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: tensor {name} must have dtype, shape and data_offsets, got {value}: fetch it again")
    if dtype_name not in DTYPES:
        raise ValueError(f"{path}: tensor {name} must have a dtype of {sorted(DTYPES)}, got {dtype_name!r}")
    entry = TensorEntry(
        name=name, path=path, dtype_name=dtype_name, shape=shape, offset=base + begin, nbytes=end - begin
    )
    if entry.size * entry.dtype.itemsize != entry.nbytes:
        raise ValueError(
            f"{path}: tensor {name} must take {entry.size * entry.dtype.itemsize} bytes for {dtype_name} "
            f"{list(shape)}, got {entry.nbytes}: fetch it again"
        )
    return entry


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array that begins at a multiple of 64 bytes: XLA:CPU then takes it over without a copy."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + nbytes].view(dtype).reshape(shape)


def read_into(entry: TensorEntry, out: np.ndarray, index: tuple[slice, ...] = ()) -> None:
    """Reads the region `index` (all of it by default; steps of 1) of a tensor into `out`, cast to its dtype.

    Args:
      out: of the region's shape; contiguous when the region is read without a cast.

    Raises:
      ValueError: the file ends early, or a float16 can not hold a value.
    """
    index = (*index, *(slice(None) for _ in entry.shape[len(index) :]))
    start, stop, _ = index[0].indices(entry.shape[0])
    inner = index[1:]
    row_bytes = entry.nbytes // max(entry.shape[0], 1)
    whole_rows = all(part.indices(dim) == (0, dim, 1) for part, dim in zip(inner, entry.shape[1:], strict=True))
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset + start * row_bytes)
        if whole_rows and out.dtype == entry.dtype and out.flags.c_contiguous:
            _read_exactly(file, out, entry)
            return
        step = max(1, _BLOCK // max(row_bytes, 1))
        scratch = np.empty((min(step, stop - start), *entry.shape[1:]), entry.dtype)
        for at in range(0, stop - start, step):
            block = scratch[: min(step, stop - start - at)]
            _read_exactly(file, block, entry)
            target = out[at : at + len(block)]
            with np.errstate(over="ignore"):
                np.copyto(target, block[(slice(None), *inner)], casting="unsafe")
            if out.dtype == np.float16 and entry.dtype != np.float16 and not np.isfinite(target).all():
                raise ValueError(f"{entry.name} must fit float16, got a value above 65504: use bfloat16 or float32")


def _read_exactly(file: FileIO, out: np.ndarray, entry: TensorEntry) -> None:
    view = out.reshape(-1).view(np.uint8).data
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            raise ValueError(f"{entry.path} must hold all of {entry.name}, got the end of the file: fetch it again")
        view = view[count:]


def read_blocks(entry: TensorEntry, dtype: np.dtype, block: int = 16 << 20) -> Iterator[np.ndarray]:
    """A tensor as consecutive runs of rows of about `block` bytes, cast to `dtype`."""
    rows = entry.shape[0]
    step = max(1, block * rows // max(entry.nbytes, 1))
    for at in range(0, rows, step):
        out = np.empty((min(step, rows - at), *entry.shape[1:]), dtype)
        read_into(entry, out, (slice(at, at + step),))
        yield out


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingTensor:
    """A tensor to be written: its bytes are asked for when their turn comes.

    Attributes:
      blocks: gives consecutive runs of rows that together are the tensor.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_file(path: Path, tensors: Sequence[PendingTensor]) -> None:
    """Writes a file, one block of one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        span = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        end = span[1]
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            written = 0
            for block in tensor.blocks():
                assert block.dtype == tensor.dtype, (tensor.name, block.dtype)
                data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
                file.write(data.data)
                written += data.nbytes
            assert written == tensor.nbytes, (tensor.name, written, tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())


def write_sharded(directory: Path, tensors: Sequence[PendingTensor], max_shard_size: int) -> list[str]:
    """Writes `model.safetensors`, or shards of at most `max_shard_size` bytes (a larger tensor stands alone) and their
    index; returns the names of the files."""
    shards: list[list[PendingTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > max_shard_size:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_file(directory / "model.safetensors", shards[0])
        return ["model.safetensors"]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(directory / name, shard)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]
