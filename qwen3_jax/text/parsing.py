"""Generated text to thinking, content and tool calls, as Qwen's documentation reads it."""

import json
import re
from typing import Any, NamedTuple, NoReturn

END_THINK = "</think>"
_OPEN_THINK = "<think>"
_OPEN_CALL = re.compile(r"<tool_call>\s*")
_CLOSE_CALL = re.compile(r"\s*</tool_call>")


class ParsedOutput(NamedTuple):
    """One answer in its parts.

    Attributes:
      thinking: what was inside the think block, "" without one.
      content: what the user is meant to read, "" if there is nothing; never None.
      tool_calls: {"type": "function", "function": {"name": str, "arguments": dict}} each, as messages take them back.
    """

    thinking: str
    content: str
    tool_calls: list[dict[str, Any]]


def split_thinking(text: str) -> tuple[str, str]:
    """Splits at the last `</think>` and strips newlines from both parts; without one, all of it is content.

    In:  "<think>\\nTwo and two.\\n</think>\\n\\nFour."
    Out: ("Two and two.", "Four.")

    Source: the quickstart of QwenLM/Qwen3 (there on token ids, and with the opening tag left in the thinking).
    """
    thinking, end, content = text.rpartition(END_THINK)
    if not end:
        return "", text.strip("\n")
    return thinking.lstrip("\n").removeprefix(_OPEN_THINK).strip("\n"), content.strip("\n")


def parse_tool_calls(content: str) -> tuple[str, list[dict[str, Any]]]:
    """Takes the `<tool_call>` blocks out of an answer.

    A block that is not exactly one JSON object with a name and arguments (an object, or JSON text of one) is no call
    and stays in the content, as does one that was cut off. Text around calls keeps its order and loses the newlines
    that set the calls apart.

    In:  'Let me look.\\n<tool_call>\\n{"name": "find", "arguments": {"key": 1}}\\n</tool_call>'
    Out: ("Let me look.", [{"type": "function", "function": {"name": "find", "arguments": {"key": 1}}}])
    """
    kept: list[str] = []
    calls: list[dict[str, Any]] = []
    done = 0
    for opening in _OPEN_CALL.finditer(content):
        if opening.start() < done:  # inside the text of a call that was already taken
            continue
        found = _read_call(content, opening.end())
        if found is None:
            continue
        call, end = found
        kept.append(content[done : opening.start()].strip("\n"))
        calls.append({"type": "function", "function": call})
        done = end
    if not calls:
        return content, []
    kept.append(content[done:].strip("\n"))
    return "\n".join(text for text in kept if text), calls


def parse_output(output: str | tuple[str, str]) -> ParsedOutput:
    """Parts of one output: its text, or (thinking, content) where these are already told apart."""
    thinking, content = split_thinking(output) if isinstance(output, str) else output
    content, calls = parse_tool_calls(content)
    return ParsedOutput(thinking, content, calls)


def _read_call(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The call whose JSON begins at `start` and the position after its closing tag, or None if there is none."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    closing = _CLOSE_CALL.match(text, end)
    if closing is None or not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"name": name, "arguments": arguments}, closing.end()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Reads to the end of one value, so that "</tool_call>" inside a string does not end the block.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
