"""The text of a record, whatever kind of record it is."""

from collections.abc import Mapping
from typing import Any


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
