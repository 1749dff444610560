"""Finding tool calls: what is one, what stays text, and what is held back meanwhile."""

import pytest

from qwen3_jax.text.parsing import AnswerParser, parse_output
from tests.qwen3_jax.text.conversations import block, call


def parsed(text: str) -> tuple:
    """Content and calls of an answer without thinking."""
    return parse_output(text, block="closed")[1:]


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
        ('<tool_call>\n{"name": "f", "arguments": {}}', "", [call("f", {})]),  # at the end of the text
        ('a\n<tool_call>{"name": "f", "arguments": {}}\n</tool_c', "a", [call("f", {})]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [call("f", {})]),  # no arguments
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [call("f", {})]),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', "", [call("f", {})]),
        ('<tool_call>{"name": "f", "arguments": {"x": "}{\\"]"}}</tool_call>', "", [call("f", {"x": '}{"]'})]),
    ],
)
def test_tool_calls_leave_the_content(text: str, content: str, calls: list[dict]) -> None:
    assert parsed(text) == (content, calls)


@pytest.mark.parametrize(
    "broken",
    [
        '<tool_call>\n{"name": "f", "arguments": {}\n</tool_call>',  # a brace is missing
        '<tool_call>\n{"name": "f", "arguments": {}} more',  # whole, but neither closed nor at the end
        '<tool_call>\n{"name": "f", "arg',
        "<tool_call>",
        "<tool_call>\n</tool_call>",
        "<tool_call>\nf(x)\n</tool_call>",
        "<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>",
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
    assert parsed(broken) == (broken, [])
    assert parsed(f"{broken}\n{block('g', {})}") == (broken, [call("g", {})])
    assert parse_output(f"<think>\n\n</think>\n\n{broken}").content == broken


def test_without_calls_the_content_is_untouched() -> None:
    for text in [" two ", "", "</tool_call>", "a <tool_call> b"]:
        assert parsed(text) == (text, [])


def test_only_what_may_become_a_call_is_held_back() -> None:
    parser, shown = AnswerParser("closed"), []
    for character in f"Look: <b> <tool_x\n{block('f', {})} <tool_call> [x":
        parser.text(character)
        shown += [part.content if not part.tool_calls else "CALL" for part in parser.take()]
    assert shown == [*"Look: ", *["<b"], *"> ", "<tool_x", "CALL", "\n ", "<tool_call> [", "x"]


def test_hostile_text_takes_no_quadratic_time() -> None:
    for text in ("<tool_call>" * 30_000, '<tool_call>{"' * 30_000, "<tool_call>{" + '"a":[' * 30_000):
        assert parsed(text) == (text, [])
