"""Conversations as users write them, checked and brought to the one form that chat templates are given.

A template drops what it does not know without a word (Qwen3's renders list content as an empty string), so everything
that would be dropped is flattened or refused here, by name.
"""

import difflib
from collections.abc import Mapping
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

# The reasoning of an assistant's message has three names in use; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *_REASONING)
_DEPTH = 64  # of JSON data in tools and arguments


def normalize_messages(messages: object) -> list[dict[str, Any]]:
    """Checks a conversation and returns a copy of plain data, ready for a chat template.

    Accepted: a non-empty list of objects with "role" (system, user, assistant, tool) and "content", a string or a list
    of {"type": "text", "text": ...}, whose texts are joined. An assistant's message may have "reasoning_content" (or
    "reasoning", "thinking"), and "tool_calls" of {"name", "arguments"}, bare or under "function", with arguments as an
    object or a JSON string; with tool calls its content may be missing or None. "name" and "tool_call_id" are kept.

    Raises:
      ValueError: anything else, in one line that begins with the place (`messages[3].content`).
    """
    if not isinstance(messages, list | tuple):
        raise _wrong("messages must be a list of objects with role and content", messages, "give a list")
    if not messages:
        raise ValueError("messages must hold at least one message, got an empty list: give a user message")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def normalize_tools(tools: object) -> list[dict[str, Any]] | None:
    """Checks a list of tool schemas ({"type": "function", "function": {"name", ...}}, or bare) and returns plain data.

    Raises:
      ValueError: not a list of objects with a function name, or something in them is not JSON.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise _wrong("tools must be a list of JSON schemas", tools, "give a list")
    schemas = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, Mapping):
            raise _wrong(f"{where} must be a JSON schema (an object)", tool, "give its schema")
        schemas.append(_plain(tool, where))
        _function(schemas[-1], where)
    return schemas


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(f"{where} must be an object with role and content", message, "give an object")
    # None says that a key is absent, as in replies of OpenAI's client; so does an empty value of a key unknown here.
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{where}.role must be one of {', '.join(ROLES)}", role, "correct the role")
    for key in given:
        empty = isinstance(given[key], str | list | tuple | Mapping) and not given[key]
        if key not in _KEYS and not empty:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise ValueError(f"{where} has the unknown key {_shown(key)}, which would be lost: {remedy}")

    plain: dict[str, Any] = {"role": str.__str__(role)}
    reasoning = next((given[key] for key in _REASONING if key in given), None)
    if reasoning is not None:
        _only_assistant(role, "reasoning_content", where)
        plain["reasoning_content"] = _string(reasoning, f"{where}.reasoning_content")
    calls = given.get("tool_calls", [])
    if not isinstance(calls, list | tuple):
        raise _wrong(f"{where}.tool_calls must be a list", calls, "give a list")
    if calls:
        _only_assistant(role, "tool_calls", where)
        plain["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if "content" not in given and calls:
        plain["content"] = ""
    else:
        plain["content"] = _content(given.get("content"), f"{where}.content")
    for key in ("name", "tool_call_id"):
        if key in given:
            plain[key] = _string(given[key], f"{where}.{key}")
    return plain


def _content(content: object, where: str) -> str:
    """The text of a message's content; a list is joined without anything between its texts."""
    if not isinstance(content, list | tuple):
        return _string(content, where)
    if not content:
        raise ValueError(f"{where} must hold text, got an empty list: give a string")
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong(f"{where}[{i}] must be an object with type and text", part, "give an object")
        if part.get("type") != "text":
            raise _wrong(f"{where}[{i}] must be of type text", part.get("type"), "Qwen3 reads text only")
        texts.append(_string(part.get("text"), f"{where}[{i}].text"))
    return "".join(texts)


def _tool_call(call: object, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise _wrong(f"{where} must be an object with name and arguments", call, "give an object")
    plain = _plain(call, where)
    arguments = _function(plain, where).get("arguments")
    if not isinstance(arguments, dict | str):
        raise _wrong(f"{where} must have arguments, an object or JSON text", arguments, "give {} for none")
    return plain


def _function(plain: dict[str, Any], where: str) -> dict[str, Any]:
    """The function that a tool or a call names, bare or under "function"."""
    function = plain.get("function") or plain
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        raise _wrong(f"{where} must name its function", plain, "give function.name, a string")
    return function


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """A copy of JSON data in Python's own types: a template must not get hold of objects with methods of their own."""
    if depth > _DEPTH:
        raise ValueError(f"{where[:80]}... is nested too deeply, got more than {_DEPTH} levels: give flatter data")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise _wrong(f"{where} must be JSON data", value, "give text, numbers, booleans, lists and objects")
    for key in value:
        if not isinstance(key, str):
            raise _wrong(f"{where} must have strings as keys", key, "give JSON data")
    return {str.__str__(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}


def _only_assistant(role: str, key: str, where: str) -> None:
    if role != "assistant":
        raise ValueError(f"{where}.{key} belongs to an assistant's message, got role {role}: remove it")


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(f"{where} must be a string", value, "give text")
    return str.__str__(value)


def _wrong(rule: str, value: object, remedy: str) -> ValueError:
    return ValueError(f"{rule}, got {_shown(value)}: {remedy}")


def _shown(value: object) -> str:
    """A value in an error message: short, on one line."""
    text = "nothing" if value is None else repr(value)
    return " ".join(text.split()) if len(text) <= 60 else f"{' '.join(text[:60].split())}... ({type(value).__name__})"


def one_line(error: Exception) -> str:
    """What a library says, for an error message of ours."""
    return " ".join(str(error).split())[:300]
