"""Reading generated text: thinking, content and tool calls."""

import json

import pytest

from qwen3_jax.text.parsing import ParsedOutput, parse_output, parse_tool_calls, split_thinking


def call(name: str, arguments: dict) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def block(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("<think>\nTwo and two.\n</think>\n\nFour.", "Two and two.", "Four."),
        ("<think>\n\n</think>\n\nFour.", "", "Four."),
        ("Two and two.\n</think>\n\nFour.", "Two and two.", "Four."),  # <think> stood in the prompt
        ("Four.", "", "Four."),
        ("\n\nFour.\n", "", "Four."),
        ("", "", ""),
        ("<think>\ncut off", "", "<think>\ncut off"),  # as in the documentation: no end, all is content
        ("<think>\na\n</think>\nb\n</think>\n\nc", "a\n</think>\nb", "c"),  # the last one counts
        ("<think>\n<think> inner\n</think>\n\nc", "<think> inner", "c"),
        ("<think>\na\n</think>", "a", ""),
        ("<think>\n  a \n</think>\n\n  c ", "  a ", "  c "),  # newlines only
        ("<think>\nहाँ 🙂\n</think>\n\n答", "हाँ 🙂", "答"),
    ],
)
def test_thinking_ends_at_the_last_end_tag(text: str, thinking: str, content: str) -> None:
    assert split_thinking(text) == (thinking, content)
    assert parse_output(text) == ParsedOutput(thinking, content, [])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (block("f", {"x": 1}), "", [call("f", {"x": 1})]),
        (f"Look:\n{block('f', {})}", "Look:", [call("f", {})]),
        (f"{block('f', {})}\n{block('g', {'y': [1, None]})}", "", [call("f", {}), call("g", {"y": [1, None]})]),
        (f"a\n{block('f', {})}\nb\n{block('g', {})}\nc", "a\nb\nc", [call("f", {}), call("g", {})]),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "", [call("f", {})]),
        ('<tool_call>\n\n {"arguments": {}, "name": "f"} \n</tool_call>', "", [call("f", {})]),
        (block("f", '{"x": "é"}'), "", [call("f", {"x": "é"})]),  # arguments as JSON text
        (block("f", {"x": "</tool_call>"}), "", [call("f", {"x": "</tool_call>"})]),
        (block("f", {"x": block("g", {})}), "", [call("f", {"x": block("g", {})})]),
        (f"<tool_call>\n{block('f', {})}", "<tool_call>", [call("f", {})]),
    ],
)
def test_tool_calls_leave_the_content(text: str, content: str, calls: list[dict]) -> None:
    assert parse_tool_calls(text) == (content, calls)


@pytest.mark.parametrize(
    "broken",
    [
        '<tool_call>\n{"name": "f", "arguments": {}\n</tool_call>',  # a brace is missing
        '<tool_call>\n{"name": "f", "arguments": {}}',  # cut off
        '<tool_call>\n{"name": "f", "arg',
        "<tool_call>",
        "<tool_call>\n</tool_call>",
        "<tool_call>\nf(x)\n</tool_call>",
        "<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": "x"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"x": NaN}}\n</tool_call>',
        '<tool_call>\n[{"name": "f", "arguments": {}}]\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}} and more\n</tool_call>',
        "<tool_call>" + '{"a":' * 100_000 + "</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>",
    ],
    ids=lambda text: text[:60],
)
def test_what_is_not_a_call_stays_in_the_content(broken: str) -> None:
    assert parse_tool_calls(broken) == (broken, [])
    assert parse_tool_calls(f"{broken}\n{block('g', {})}") == (broken, [call("g", {})])
    assert parse_output(f"<think>\n\n</think>\n\n{broken}").content == broken


def test_without_calls_the_content_is_untouched() -> None:
    for text in ["\n two\n", "", "</tool_call>", "a <tool_call> b"]:
        assert parse_tool_calls(text) == (text, [])


def test_parts_already_told_apart() -> None:
    content = f"Look.\n{block('f', {'x': 1})}"
    assert parse_output(("why </think>", content)) == ParsedOutput("why </think>", "Look.", [call("f", {"x": 1})])


def test_a_call_inside_the_thinking_is_none() -> None:
    text = f"<think>\n{block('f', {})}\n</think>\n\nNo."
    assert parse_output(text) == ParsedOutput(block("f", {}), "No.", [])
