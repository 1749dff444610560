"""What the data of a run is, by contents: so that a run does not go on with other files than it began with.

run_dir/data_identity.json holds, for each file in the order of the sources, its documents, its size and a digest of
blocks spread over it. Neither paths nor times count: the files may be moved or copied.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.files import write_json
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data.examples import cache_of
from qwen3_jax.train.data.readers import SUFFIXES, HuggingFaceReader, find_files, open_readers
from qwen3_jax.train.data.token_shards import MANIFEST, shard_files
from qwen3_jax.train.run_dir import has_checkpoint
from qwen3_jax.train.settings import SourceConfig

IDENTITY = "data_identity.json"
_BLOCK = 4096  # bytes
_BLOCKS, _LEAST, _ALL = 64, 4, 1 << 14  # blocks of a file: that many, fewer where all files together had more than _ALL
_READERS = 16  # threads: what takes long is waiting for a disk or a network


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """Attributes:
    name: for messages.
    size: bytes; -1 of a Hugging Face dataset.
    digest: of the size and of blocks of the contents, the first and the last among them; a dataset's fingerprint.
    """

    name: str
    size: int
    digest: str


def claim_data(run_dir: Path, config: TrainConfig) -> None:
    """Notes what the data is, or requires it to be the same where `run_dir` holds a checkpoint that goes on with it.

    Sources for evaluation may change from start to start. Process 0 calls it.

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: a file is not the one that the run began with; it is named.
    """
    sources = config.data.sources
    if not sources:
        return
    path, cache = run_dir / IDENTITY, cache_of(config.data)
    resumed = path.exists() and has_checkpoint(run_dir)
    theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if resumed else {}
    ours = identify(sources, theirs.get("blocks"))
    if resumed:
        _compare(theirs, ours)
    ours["documents"] = [count for source in sources for count in _counts(source, cache)]
    if not resumed:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)
        return
    for file, count, was in zip(ours["files"], ours["documents"], theirs["documents"], strict=True):
        if count != was:
            raise ValueError(_differs(file["name"], f"{count:,} documents, not {was:,}"))


def identify(sources: Sequence[SourceConfig], blocks: int | None = None) -> dict[str, Any]:
    """Plain JSON values: `blocks` read of each file, `files` (`FileIdentity`) of all sources in order.

    Args:
      blocks: None: as many as suit the number of files.
    """
    parts: list[list[Path] | FileIdentity] = []
    for source in sources:
        parts += [_dataset(source)] if source.path.startswith("hf:") else _files(source)
    blocks = blocks or max(_LEAST, min(_BLOCKS, _ALL // max(len(parts), 1)))
    with ThreadPoolExecutor(_READERS) as pool:
        files = list(pool.map(partial(_identify, blocks=blocks), parts))
    return {"blocks": blocks, "files": [dataclasses.asdict(file) for file in files]}


def sampled(path: Path, blocks: int) -> tuple[int, bytes]:
    """The size of a file, and SHA-256 of its size and of `blocks` blocks spread evenly over it; all of a small one.

    In:  10 bytes in blocks of 2, 3 of them     Out: 10, sha256("10" and bytes 0-1, 4-5, 8-9)
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(str(size).encode())
        if size <= blocks * _BLOCK:
            digest.update(file.read())
        else:
            for number in range(blocks):
                digest.update(os.pread(file.fileno(), _BLOCK, number * (size - _BLOCK) // (blocks - 1)))
    return size, digest.digest()


def _identify(part: list[Path] | FileIdentity, blocks: int) -> FileIdentity:
    if isinstance(part, FileIdentity):
        return part
    size, digest = 0, hashlib.sha256()
    for path in part:
        more, own = sampled(path, blocks)
        size += more
        digest.update(own)
    name = part[0] if len(part) == 1 else part[0].parent
    return FileIdentity(str(name), size, digest.hexdigest()[:32])


def _files(source: SourceConfig) -> list[list[Path]]:
    """The files of a source, in the order of its readers; those of a shard of tokens together."""
    directory = Path(source.path)
    if (directory / MANIFEST).is_file():
        return shard_files(directory)
    return [[path] for path in find_files(source.path, SUFFIXES)]


def _dataset(source: SourceConfig) -> FileIdentity:
    return FileIdentity(source.path, -1, HuggingFaceReader(source.path).fingerprint)


def _counts(source: SourceConfig, cache: Path) -> list[int]:
    """Documents of each file."""
    if (Path(source.path) / MANIFEST).is_file():
        return [len(np.load(shard[0].parent / "ends.npy", mmap_mode="r")) for shard in _files(source)]
    return [len(reader) for reader in open_readers(source, cache)]


def _compare(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    old, new = theirs["files"], ours["files"]
    if len(old) != len(new):
        more, fewer, which = (old, new, "missing") if len(old) > len(new) else (new, old, "new")
        known = {file["digest"] for file in fewer}
        name = next((file["name"] for file in more if file["digest"] not in known), more[-1]["name"])
        raise ValueError(
            f"the sources must name the {len(old)} files that this run began with, got {len(new)} ({name} is "
            f"{which}): put the old files back, or choose another run_dir"
        )
    for was, now in zip(old, new, strict=True):
        if now["size"] != was["size"]:
            raise ValueError(_differs(now["name"], f"{now['size']:,} bytes, not {was['size']:,}"))
        if now["digest"] != was["digest"]:
            raise ValueError(_differs(now["name"], "other contents"))


def _differs(name: str, what: str) -> str:
    remedy = "put the old file back, or choose another run_dir"
    return f"{name} must be the file that this run began with, got {what}: {remedy}"
