"""Generated text to thinking, content and tool calls: one parser for whole texts and for answers as they are made."""

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, NoReturn

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
_TAGS = re.compile(f"({THINK}|{END_THINK})")

# Where an answer begins: inside a think block that the prompt opened, after one, or where the model may open one.
Block = Literal["open", "closed", "unknown"]
_Item = tuple[str, dict[str, Any] | None]  # text as generated, and the call that it is, if it is one


class ParsedOutput(NamedTuple):
    """One answer, or a part of one.

    Attributes:
      thinking: what was inside the think block, "" without one.
      content: what the user is meant to read, "" if there is nothing; never None.
      tool_calls: {"type": "function", "function": {"name": str, "arguments": dict}} each, as messages take them back.
    """

    thinking: str
    content: str
    tool_calls: list[dict[str, Any]]


class AnswerParser:
    """Reads one answer while its text arrives. However it is cut, what `take` returns joins to the same `ParsedOutput`.

    Thinking is what stands in think blocks; a block that never closes reaches to the end. A `</think>` that nothing
    opened ends the thinking as well: all before it is thinking. Only the first block may be closed so; a later
    `</think>` is text, like a `<think>` inside a block.

    Content loses the newlines at both ends, after a block, and around tool calls (one stays between two texts);
    thinking those at both ends. A tool call is a JSON object with a name between its tags; the closing tag may be
    missing at the end of the answer. Anything else between the tags is text.

    A call inside a block is a draft and stays thinking, unless the block never closes: then the first whole call ends
    it. So text is held back from a whole call in a block up to the block's end, from the start of what may become a
    call until that is decided, and with block="unknown" until a tag or the end of the answer.

    Args:
      block: where the answer begins.
      plain: the text continues raw text: newlines stay (but those after a block), and there are no tool calls.
    """

    def __init__(self, block: Block = "unknown", *, plain: bool = False) -> None:
        self.block = block
        self._plain = plain
        self._unsure: list[str] = []
        self._finder = _CallFinder()
        self._draft: list[_Item] = []  # in a block: the first whole call and all after it
        self._thinking_trim, self._content_trim = _Trim(), _Trim(off=plain)
        self._parts: list[ParsedOutput] = []

    def text(self, text: str) -> None:
        """Adds text of the part that the answer is in."""
        if self.block == "unknown":
            self._unsure.append(text)
        else:
            self._add([(text, None)] if self._plain else self._finder.push(text))

    def open_block(self) -> None:
        """`<think>` outside a block: what follows is thinking."""
        assert self.block != "open"
        self._settle("closed")
        self._add(self._finder.push("", end=True))
        self.block = "open"

    def close_block(self) -> None:
        """`</think>` in a block, or before any: what follows is content."""
        assert self.block != "closed"
        self._settle("open")
        drafted = "".join([text for text, _ in self._draft]) + self._finder.take()
        self._draft.clear()
        self._say(thinking=self._thinking_trim.push(drafted))
        self.block = "closed"
        self._content_trim.skip_leading()

    def finish(self) -> None:
        """The answer has ended."""
        self._settle("closed")
        self._add(self._finder.push("", end=True))
        if self._draft:
            self.block = "closed"
            self._add(self._draft)

    def take(self) -> list[ParsedOutput]:
        """What is new, in order; each call stands alone, with no text beside it."""
        parts, self._parts = self._parts, []
        return parts

    def _settle(self, block: Block) -> None:
        if self.block == "unknown":
            self.block = block
            self.text("".join(self._unsure))
            self._unsure.clear()

    def _add(self, items: list[_Item]) -> None:
        for text, call in items:
            if self.block == "open":
                if call or self._draft:
                    self._draft.append((text, call))
                else:
                    self._say(thinking=self._thinking_trim.push(text))
            elif call:
                self._content_trim.part()
                self._parts.append(ParsedOutput("", "", [call]))
            else:
                self._say(content=self._content_trim.push(text))

    def _say(self, thinking: str = "", content: str = "") -> None:
        if self._parts and not self._parts[-1].tool_calls:
            last = self._parts.pop()
            thinking, content = last.thinking + thinking, last.content + content
        if thinking or content:
            self._parts.append(ParsedOutput(thinking, content, []))


def join(parts: Iterable[ParsedOutput]) -> ParsedOutput:
    """The whole of which these are the parts."""
    parts = list(parts)
    calls = [call for part in parts for call in part.tool_calls]
    return ParsedOutput("".join([p.thinking for p in parts]), "".join([p.content for p in parts]), calls)


def parse_output(output: str | tuple[str, str], *, block: Block = "unknown") -> ParsedOutput:
    """Parts of one output: its text, or (thinking, content) where these are already told apart. See `AnswerParser`.

    In:  "<think>\\nTwo and two.\\n</think>\\n\\nFour."
    Out: ParsedOutput("Two and two.", "Four.", [])

    Args:
      block: where the text begins: "open" inside a block that the prompt opened, "closed" after one (thinking is off),
        "unknown" where the model may open one itself or the prompt is not known.
    """
    if not isinstance(output, str):
        parser = AnswerParser("open")
        parser.text(output[0])
        parser.close_block()
        parser.text(output[1])
    else:
        parser = AnswerParser(block)
        for text in _TAGS.split(output):
            if text == THINK and parser.block != "open":
                parser.open_block()
            elif text == END_THINK and parser.block != "closed":
                parser.close_block()
            else:
                parser.text(text)
    parser.finish()
    return join(parser.take())


def parse_tool_calls(content: str) -> tuple[str, list[dict[str, Any]]]:
    """Takes the tool calls out of an answer without thinking; see `AnswerParser`.

    In:  'Let me look.\\n<tool_call>\\n{"name": "find", "arguments": {"key": 1}}\\n</tool_call>'
    Out: ("Let me look.", [{"type": "function", "function": {"name": "find", "arguments": {"key": 1}}}])
    """
    parser = AnswerParser("closed")
    parser.text(content)
    parser.finish()
    return join(parser.take())[1:]


def partial_suffix(text: str, wanted: Iterable[str]) -> int:
    """Where the longest end of `text` begins that is the beginning of a wanted string, but not all of it."""
    reach = max(map(len, wanted := list(wanted)), default=1) - 1
    for start in range(max(0, len(text) - reach), len(text)):
        if any(string.startswith(text[start:]) for string in wanted):
            return start
    return len(text)


class _Trim:
    """Text without the newlines at its ends, piece by piece."""

    def __init__(self, off: bool = False) -> None:
        self._off = off
        self._skip = not off  # newlines that come next are dropped
        self._held = ""  # newlines that are dropped unless text follows
        self._empty = True

    def skip_leading(self) -> None:
        self._skip = True

    def part(self) -> None:
        """A tool call: of the newlines around it one stays, if there is text on both sides."""
        self._held, self._skip = "" if self._empty else "\n", True

    def push(self, text: str) -> str:
        if self._skip:
            text = text.lstrip("\n")
            self._skip = not text
        if self._off or not text:
            return text
        text = self._held + text
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        self._empty = self._empty and not kept
        return kept


class _CallFinder:
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

    def push(self, text: str, end: bool = False) -> list[_Item]:
        """Adds text; returns what is decided by now, all of it if this is the end."""
        text = self._text + text
        found: list[_Item] = []
        done = start = position = 0
        while True:
            if self._at is None:
                start = text.find(CALL, position)
                if start < 0:
                    start = len(text) if end else partial_suffix(text, [CALL])
                    break
                self._at = start + len(CALL)
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
        no_call = start + len(CALL)
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
                self._call = _decode_call(text[start + len(CALL) : at])
                if self._call is None:
                    return no_call
        at = self._at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text.startswith(END_CALL, at):
            return at + len(END_CALL)
        if END_CALL.startswith(text[at : at + len(END_CALL)]):
            return len(text) if end else None
        self._call = None
        return no_call


_SPACE = re.compile(r"\s*")
_OUTSIDE_STRINGS = re.compile(r"[-+.\w\s:,]*")
_INSIDE_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


def _decode_call(text: str) -> dict[str, Any] | None:
    """The call that a JSON text is, or None. Arguments may be an object, JSON text of one, or missing."""
    try:
        value = _JSON.decode(text)
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
