"""Files that appear whole or not at all, and records read one at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to. When the block ends without an error, what is there takes the place of `path`:
    a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[TextIO]:
    """The same as an open text file."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield file


def replace_text(path: Path, text: str) -> None:
    """The same for a text that is there already."""
    with written_beside(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """The same for plain JSON values."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; empty lines are passed over.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not a JSON object; its number is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a JSONL file, got none there: correct the path")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_record(line, f"{path}:{number}")


def parse_record(line: str, where: str) -> dict[str, Any]:
    """The JSON object on one line; see `read_jsonl` for what it raises."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} must be a JSON object, it is not JSON ({error}): correct the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}: correct the line")
    return record
