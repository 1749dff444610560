"""Files that appear whole or not at all, and records read one at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[TextIO]:
    """A file to write that takes `path`'s place when the block ends without an error."""
    beside = path.with_name(f"{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        yield file
    os.replace(beside, path)


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
