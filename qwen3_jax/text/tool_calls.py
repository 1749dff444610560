"""Tool calls in generated text: what one looks like, and how it is found while the text arrives."""

import json
import re
from typing import Any, NoReturn

from qwen3_jax.text.streaming import partial_suffix

Item = tuple[str, dict[str, Any] | None]  # text as generated, and the call that it is, if it is one

_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"\s*")
_OUTSIDE_STRINGS = re.compile(r"[-+.\w\s:,]*")
_INSIDE_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class CallFinder:
    """Finds whole tool calls in text that arrives in pieces, and reads each character once."""

    def __init__(self) -> None:
        self._text = ""  # undecided: the start of a block, or of its tag
        self._reset()

    def _reset(self) -> None:
        self._at: int | None = None  # how far the block is read; None outside
        self._depth = 0  # open braces and brackets
        self._quoted = False
        self._call: dict[str, Any] | None = None  # of the JSON before _at

    def take(self) -> str:
        """The undecided text, which is part of no call."""
        text, self._text = self._text, ""
        self._reset()
        return text

    def push(self, text: str, end: bool = False) -> list[Item]:
        """Adds text; returns what is decided by now, all of it if this is the end."""
        text = self._text + text
        found: list[Item] = []
        done = start = position = 0
        while True:
            if self._at is None:
                start = text.find(_CALL, position)
                if start < 0:
                    start = len(text) if end else partial_suffix(text, [_CALL])
                    break
                self._at = start + len(_CALL)
            stop = self._read_call(text, start, end)
            if stop is None:
                break
            if self._call:
                found += [(text[done:start], None), (text[start:stop], self._call)]
                done = stop
            position = stop
            self._reset()
        found.append((text[done:start], None))
        self._text = text[start:]
        if self._at is not None:
            self._at -= start
        return [item for item in found if item[0]]

    def _read_call(self, text: str, start: int, end: bool) -> int | None:
        """Reads on in the block at `start`; returns None while undecided, else where it ends and its call in _call."""
        no_call = start + len(_CALL)
        at = self._at or 0
        while self._call is None:
            rest = _INSIDE_STRING if self._quoted else _OUTSIDE_STRINGS if self._depth else _SPACE
            at = self._at = rest.match(text, at).end()  # type: ignore[union-attr]  # all of them match "" too
            if at == len(text) or (self._quoted and text[at] == "\\"):
                return no_call if end else None
            character = text[at]
            if character == '"' and self._depth:
                self._quoted = not self._quoted
            elif character == "{" or (character == "[" and self._depth):
                self._depth += 1
            elif character in "]}" and self._depth:
                self._depth -= 1
            else:
                return no_call
            at = self._at = at + 1
            if not self._depth:
                self._call = _decode_call(text[start + len(_CALL) : at])
                if self._call is None:
                    return no_call
        at = self._at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text.startswith(_END_CALL, at):
            return at + len(_END_CALL)
        if _END_CALL.startswith(text[at : at + len(_END_CALL)]):
            return len(text) if end else None
        self._call = None
        return no_call


def _decode_call(text: str) -> dict[str, Any] | None:
    """The call that a JSON text is, or None. Arguments may be an object, JSON text of one, or missing."""
    try:
        value = _JSON.decode(text.strip())
        name, arguments = value.get("name"), value.get("arguments")
        if isinstance(arguments, str):
            arguments = _JSON.decode(arguments) if arguments.strip() else None
    except (ValueError, RecursionError):
        return None
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
