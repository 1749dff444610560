"""Reading generated text: thinking, content and tool calls, whole and in pieces."""

import random

import pytest

from qwen3_jax.text.parsing import AnswerParser, ParsedOutput, join, parse_output
from tests.qwen3_jax.text.conversations import block, call


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


def test_parts_already_told_apart() -> None:
    content = f"Look.\n{block('f', {'x': 1})}"
    assert parse_output(("why </think>", content)) == ParsedOutput("why </think>", "Look.", [call("f", {"x": 1})])
