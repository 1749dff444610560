"""Text of a run's sources, from which a tokenizer is made where the run brings none."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.compile_cache import user_cache
from train.data.examples import FIELDS
from train.data.readers import open_readers
from train.settings import DataConfig


def sample_texts(data: DataConfig, count: int, seed: int) -> Iterator[str]:
    """Texts of `count` examples drawn without repetition from all sources alike (of all, where they are fewer).

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: the sources are tokens, or a record is malformed.
    """
    files = []
    for source in data.sources:
        if source.kind == "tokens":
            raise ValueError(
                f"tokenizer.path must name the tokenizer that {source.path} was made with, got nothing: set it"
            )
        files += [(reader, source.field or FIELDS[source.kind]) for reader in open_readers(source, cache_of(data))]
    starts = np.cumsum([0, *(len(reader) for reader, _ in files)])
    total = int(starts[-1])
    rng = np.random.default_rng((seed, 4))
    for index in np.sort(rng.choice(total, min(count, total), replace=False)).tolist():
        file = int(np.searchsorted(starts, index, side="right")) - 1
        reader, field = files[file]
        record = reader[index - int(starts[file])]
        if field not in record:
            raise ValueError(f"{reader.name}:{index - int(starts[file])} must have {field!r}: set data.sources.field")
        yield from _texts(record[field])


def cache_of(data: DataConfig) -> Path:
    """Where what is counted once about files is kept."""
    return Path(data.cache).expanduser() if data.cache else user_cache() / "data"


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
        return
    for message in content:
        assert isinstance(message, Mapping)
        for key in ("role", "reasoning_content", "content"):
            if isinstance(message.get(key), str):
                yield message[key]
