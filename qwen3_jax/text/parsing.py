"""Generated text to thinking, content and tool calls: one parser for whole texts and for answers as they are made."""

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from qwen3_jax.text.tool_calls import CallFinder, Item

THINK, END_THINK = "<think>", "</think>"
_TAGS = re.compile(f"({THINK}|{END_THINK})")

# Where an answer begins: inside a think block that the prompt opened, after one, or where the model may open one.
Block = Literal["open", "closed", "unknown"]


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
        self._finder = CallFinder()
        self._draft: list[Item] = []  # in a block: the first whole call and all after it
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

    def _add(self, items: list[Item]) -> None:
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
