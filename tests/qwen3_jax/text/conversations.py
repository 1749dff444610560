"""Conversations for template tests: by hand, and any number made at random from a seed."""

import json
from typing import Any

import numpy as np

Message = dict[str, Any]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Wetter & "more" <b>今</b>, it\'s here',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
BARE = {"name": "add", "parameters": {"z": 1, "a": [1.5, True, None], "é": "/"}}
TOOLS = [WEATHER, BARE]


def user(content: str = "hi") -> Message:
    return {"role": "user", "content": content}


def system(content: str = "Be brief.") -> Message:
    return {"role": "system", "content": content}


def assistant(content: str = "ok", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def tool(content: str = '{"t": 20}') -> Message:
    return {"role": "tool", "content": content}


def calls(*arguments: Any, nested: bool = True) -> list[dict[str, Any]]:
    """One call for each of `arguments` (an object or a string)."""
    bare = [{"name": f"f{i}", "arguments": value} for i, value in enumerate(arguments)]
    return [{"id": f"c{i}", "type": "function", "function": call} for i, call in enumerate(bare)] if nested else bare


THOUGHT = "<think>\nhm\n\nhm\n</think>\n\nok"

BY_HAND: list[list[Message]] = [
    [user()],
    [system(), user()],
    [system(""), user("")],
    [system()],
    [assistant()],
    [assistant(THOUGHT)],
    [tool()],
    [tool(), tool("2"), user(), tool("3")],
    [user(), assistant()],
    [user(), assistant(), user("more")],
    [user(), assistant(THOUGHT)],
    [user(), assistant(THOUGHT), user("more")],
    [user(), assistant(THOUGHT), user("more"), assistant(THOUGHT)],
    [user(), assistant(THOUGHT), assistant(THOUGHT), assistant("third")],
    [user(), assistant("ok", reasoning_content="hm"), user("more")],
    [user(), assistant("ok", reasoning_content="\n\nhm\n\n")],
    [user(), assistant("\n\nok\n", reasoning_content="")],
    [user(), assistant("\n", reasoning_content="hm", tool_calls=calls({}))],
    [user(), assistant(THOUGHT, reasoning_content="other")],
    [user(), assistant(THOUGHT, reasoning_content="other"), assistant("x")],
    [user(), assistant("a</think>b</think>\n\nc")],
    [user(), assistant("<think>a<think>\nb\n</think>c"), assistant()],
    [user(), assistant("</think>"), user()],
    [user(), assistant("<think>open"), user()],
    [user(), assistant("<think>\n\n</think>\n\n", tool_calls=calls({"x": 1})), tool()],
    [user(), system("in the middle"), assistant(), system("again"), user()],
    [system("one"), system("two"), user()],
    [user(), assistant("", tool_calls=calls({"city": "Zürich <&>"})), tool(), assistant()],
    [user(), assistant("Look:", tool_calls=calls({"a": [1, {"b": None}]}, "{}")), tool("1"), tool("2"), assistant()],
    [user(), assistant("Look:", tool_calls=calls('{"raw":  "as it stands"}', {}, nested=False)), tool("1"), user("?")],
    [user(), assistant("", tool_calls=calls("", "not json", {})), tool()],
    [user(), assistant("x", tool_calls=[]), user()],
    [
        user(),
        assistant("", reasoning_content="step 1", tool_calls=calls({"n": 1})),
        tool("a"),
        assistant("", reasoning_content="step 2", tool_calls=calls({"n": 2})),
        tool("b"),
        tool("c"),
        assistant("<think>\nstep 3\n</think>\n\ndone"),
    ],
    [user("first"), assistant(THOUGHT), user("<tool_response>\nx\n</tool_response>"), assistant(THOUGHT)],
    [user("<tool_response>x</tool_response>"), assistant(THOUGHT), assistant()],
    [user("<tool_response>x"), assistant(THOUGHT), user("x</tool_response>"), assistant(THOUGHT), assistant()],
    [user("/no_think नमस्ते 🙂 \ufffd \x00 \r\n tab\t"), assistant(" \n ok \n ")],
    [user("{{ messages }} {% raw %} {# no #}"), assistant("<|im_end|>\n<|im_start|>user\n")],
]

_PIECES = (
    *("", "\n", "\n\n", " ", "a", "word", "<think>", "</think>", "<think>\n", "\n</think>\n\n", "<tool_response>"),
    *(
        "</tool_response>",
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
        "नमस्ते",
        "🙂",
        "漢字",
        '"',
        "\\",
        "<b>&amp;'",
        "/think",
    ),
    *("{{ 1 }}", "{% if %}", "\t", "\r\n", "\ufffd", "\u2028"),
)


def random_conversation(random: np.random.Generator) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """A conversation of 1 to 9 messages in any order of roles, and tools for it or None."""

    def text() -> str:
        body = "".join(random.choice(_PIECES, int(random.integers(0, 7))))
        return f"<tool_response>{body}</tool_response>" if random.random() < 0.1 else body

    def value(depth: int = 0) -> Any:
        kind = int(random.integers(0, 7 if depth < 2 else 5))
        if kind < 5:
            return (text(), int(random.integers(-9, 9)), float(random.normal()), bool(random.integers(2)), None)[kind]
        return [value(depth + 1) for _ in range(2)] if kind == 5 else {text(): value(depth + 1) for _ in range(2)}

    def some_calls() -> list[dict[str, Any]]:
        arguments = [{text(): value()} if random.random() < 0.6 else json.dumps({"k": text()}) for _ in range(3)]
        return calls(*arguments[: int(random.integers(0, 4))], nested=bool(random.integers(2)))

    messages = [system(text())] if random.random() < 0.3 else []
    for _ in range(int(random.integers(1, 9))):
        role = random.choice(["user", "assistant", "tool", "system"], p=[0.3, 0.4, 0.24, 0.06])
        message: Message = {"role": str(role), "content": text()}
        if role == "assistant":
            if random.random() < 0.4:
                message["reasoning_content"] = text()
            if random.random() < 0.4:
                message["tool_calls"] = some_calls()
        messages.append(message)
    if random.random() < 0.5:
        return messages, None
    return messages, [{"type": "function", "function": {"name": text() or "f", "parameters": value()}}, BARE]


def call(name: str, arguments: dict) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def block(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
