"""Files that appear whole or not at all, and records read one at a time."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
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


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text that a record is judged by: its field, or what the messages of a conversation say.

    In:  {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Out: "a\\nb"

    Raises:
      ValueError: neither is there.
    """
    value = record.get(field)
    if value is None and isinstance(record.get("messages"), list):
        messages = [message for message in record["messages"] if isinstance(message, dict)]
        contents = (message.get(key) for message in messages for key in ("reasoning_content", "content"))
        value = "\n".join(content for content in contents if isinstance(content, str))
    if not isinstance(value, str):
        raise ValueError(f"{where} must have a text in {field!r} or messages, got {sorted(record)}: name the field")
    return value
