"""Text of a run's sources, from which a tokenizer is made where the run brings none."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.compile_cache import user_cache
from qwen3_jax.train.data.bad_records import LeftOut, described, stopped_by
from qwen3_jax.train.data.examples import FIELDS
from qwen3_jax.train.data.readers import open_readers
from qwen3_jax.train.settings import DataConfig


def sample_texts(data: DataConfig, count: int, seed: int) -> Iterator[str]:
    """Texts of `count` examples drawn without repetition from all sources alike (of all, where they are fewer).

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: the sources are tokens, or a record is malformed and not to be left out.
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
    rng, left_out = np.random.default_rng((seed, 4)), LeftOut()
    for index in np.sort(rng.choice(total, min(count, total), replace=False)).tolist():
        file = int(np.searchsorted(starts, index, side="right")) - 1
        reader, field = files[file]
        try:
            texts = _texts(reader[index - int(starts[file])], field)
        except ValueError as error:
            text = described(reader.name, index - int(starts[file]), error)
            if data.on_bad_record == "stop":
                raise stopped_by(text) from None
            left_out.note(index, text)
            continue
        yield from texts


def cache_of(data: DataConfig) -> Path:
    """Where what is counted once about files is kept."""
    return Path(data.cache).expanduser() if data.cache else user_cache() / "data"


def _texts(record: Mapping[str, Any], field: str) -> list[str]:
    """What is text in a record."""
    if field not in record:
        raise ValueError(f"a record must have {field!r}, got {', '.join(record) or 'nothing'}: set data.sources.field")
    content = record[field]
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not all(isinstance(message, Mapping) for message in content):
        raise ValueError(
            f"{field} must be text or a list of messages, got {type(content).__name__}: correct the record"
        )
    keys = ("role", "reasoning_content", "content")
    return [message[key] for message in content for key in keys if isinstance(message.get(key), str)]
