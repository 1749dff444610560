"""Reading generated text: thinking, content and tool calls."""

import json
import random

import pytest

from qwen3_jax.text.parsing import AnswerParser, ParsedOutput, join, parse_output, parse_tool_calls


def call(name: str, arguments: dict) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def block(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def said(thinking: str, content: str, *calls: dict) -> ParsedOutput:
    return ParsedOutput(thinking, content, list(calls))


CALL, OTHER = call("f", {"x": 1}), call("g", {})
BLOCK, OTHER_BLOCK = block("f", {"x": 1}), block("g", {})
OUTPUTS = [
    ("<think>\nTwo and two.\n</think>\n\nFour.", said("Two and two.", "Four.")),
    ("<think>\n\n</think>\n\nFour.", said("", "Four.")),
    ("Two and two.\n</think>\n\nFour.", said("Two and two.", "Four.")),  # <think> stood in the prompt
    ("Two and two.</think>", said("Two and two.", "")),
    ("Four.", said("", "Four.")),
    ("\n\nFour.\n", said("", "Four.")),
    ("", said("", "")),
    ("<think>\ncut off", said("cut off", "")),
    ("<think>", said("", "")),
    ("Well.\n<think>\na\n</think>\n\nb", said("a", "Well.\nb")),
    ("<think>\na\n</think>\nb\n</think>\n\nc", said("a", "b\n</think>\n\nc")),  # the first one counts
    ("a</think>b</think>c", said("a", "b</think>c")),
    ("<think>\n<think> inner\n</think>\n\nc", said("<think> inner", "c")),
    ("<think>a</think>b\n<think>c", said("ac", "b")),
    ("<think>\na\n</think>", said("a", "")),
    ("<think>\n  a \n</think>\n\n  c ", said("  a ", "  c ")),  # newlines only
    ("<think>\nहाँ 🙂\n</think>\n\n答", said("हाँ 🙂", "答")),
    # Tool calls: after a block, drafted in a closed one, in one that never closes, before a stray closing tag.
    (f"<think>\nwhy\n</think>\n\nLook.\n{BLOCK}", said("why", "Look.", CALL)),
    (f"<think>\n{BLOCK}\n</think>\n\nNo.", said(BLOCK, "No.")),
    (f"<think>\n{BLOCK}\n</think>\n\n{OTHER_BLOCK}", said(BLOCK, "", OTHER)),
    (f"<think>\nwhy\n{BLOCK}", said("why", "", CALL)),
    (f"<think>\nwhy\n\n{BLOCK}\n{OTHER_BLOCK}\nDone.\n", said("why", "Done.", CALL, OTHER)),
    (f"<think>\nwhy\n{BLOCK[:-12]}", said("why", "", CALL)),
    (f"<think>\nwhy <tool_call> {BLOCK[:-20]}", said(f"why <tool_call> {BLOCK[:-20]}", "")),
    (f"<think>\n<tool_call>\n{{\n</think>\n\n{BLOCK}", said("<tool_call>\n{", "", CALL)),
    (f"{BLOCK}\n</think>\n\nNo.", said(BLOCK, "No.")),
    (f"a\n{BLOCK}<think>b</think>\n\nc", said("b", "a\nc", CALL)),
    (f"{BLOCK[:-12]}<think>b</think>c", said("b", "c", CALL)),
]


@pytest.mark.parametrize(("text", "parts"), OUTPUTS)
def test_whole_texts(text: str, parts: ParsedOutput) -> None:
    assert parse_output(text) == parts


def test_where_the_answer_begins() -> None:
    """The prompt says whether the answer begins in a block; a text alone does not."""
    for text, opened, closed in [
        ("Four.", said("Four.", ""), said("", "Four.")),
        ("a\n</think>\n\nb", said("a", "b"), said("", "a\n</think>\n\nb")),
        (f"a\n{BLOCK}", said("a", "", CALL), said("", "a", CALL)),
        ("<think>a</think>b", said("<think>a", "b"), said("a", "b")),
    ]:
        assert parse_output(text, block="open") == opened
        assert parse_output(text, block="closed") == closed


FRAGMENTS = [
    *("a", "\n", "\n\n", " b", "<tool_call>", "</tool_call>", "<tool", "_call>", "{", "}", '"', "\\\\", "<", "[", ","),
    *('{"name": "f"}', '{"name": "f", "arguments": {"x": "}<"}}', "<think>", "</think>", BLOCK, OTHER_BLOCK),
]


def test_pieces_join_to_the_whole_however_the_text_is_cut() -> None:
    rng = random.Random(0)
    texts = [text for text, _ in OUTPUTS] * 5 + [
        "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 9))) for _ in range(1500)
    ]
    found = 0
    for text in texts:
        for start in ("open", "closed", "unknown"):
            parser, parts = AnswerParser(start), []
            for tag in ("<think>", "</think>"):
                text = text.replace(tag, f"\0{tag}\0")
            for segment in text.split("\0"):
                if segment == "<think>" and parser.block != "open":
                    parser.open_block()
                elif segment == "</think>" and parser.block != "closed":
                    parser.close_block()
                else:
                    cuts = sorted(rng.choices(range(len(segment) + 1), k=rng.randint(0, 6)))
                    for a, b in zip([0, *cuts], [*cuts, len(segment)], strict=True):
                        parser.text(segment[a:b])
                        parts += parser.take()
            parser.finish()
            parts += parser.take()
            text = text.replace("\0", "")
            assert join(parts) == parse_output(text, block=start), text
            for part in parts:
                assert len(part.tool_calls) == (0 if part.thinking or part.content else 1)
            whole = join(parts)
            for kept in (whole.thinking, whole.content):
                assert kept == kept.strip("\n")
            found += len(whole.tool_calls)
    assert found > 500


def test_only_what_may_become_a_call_is_held_back() -> None:
    parser, shown = AnswerParser("closed"), []
    for character in f"Look: <b> <tool_x\n{BLOCK} <tool_call> [x":
        parser.text(character)
        shown += [part.content if not part.tool_calls else "CALL" for part in parser.take()]
    assert shown == [*"Look: ", *["<b"], *"> ", "<tool_x", "CALL", "\n ", "<tool_call> [", "x"]


def test_hostile_text_takes_no_quadratic_time() -> None:
    for text in ("<tool_call>" * 30_000, '<tool_call>{"' * 30_000, "<tool_call>{" + '"a":[' * 30_000):
        assert parse_tool_calls(text) == (text, [])


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
    assert parse_tool_calls(text) == (content, calls)


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
    assert parse_tool_calls(broken) == (broken, [])
    assert parse_tool_calls(f"{broken}\n{block('g', {})}") == (broken, [call("g", {})])
    assert parse_output(f"<think>\n\n</think>\n\n{broken}").content == broken


def test_without_calls_the_content_is_untouched() -> None:
    for text in [" two ", "", "</tool_call>", "a <tool_call> b"]:
        assert parse_tool_calls(text) == (text, [])


def test_parts_already_told_apart() -> None:
    content = f"Look.\n{block('f', {'x': 1})}"
    assert parse_output(("why </think>", content)) == ParsedOutput("why </think>", "Look.", [call("f", {"x": 1})])
