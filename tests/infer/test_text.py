"""Tokens to the parts of an answer; stop strings: found however the text is cut, at once, and never shown."""

import json
import random
from typing import Any

import pytest

from qwen3_jax.infer.automaton import IN_CONTENT, IN_THINKING, NOTHING, TAG
from qwen3_jax.infer.results import Result
from qwen3_jax.infer.text import RowText, StopMatcher
from qwen3_jax.text.parsing import Block, ParsedOutput, join, parse_output
from qwen3_jax.text.tokenizer import Tokenizer

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL_TEXT = f"<tool_call>\n{json.dumps(CALL['function'])}\n</tool_call>"


def parts_of(tok: Tokenizer, tokens: list[int], inside: bool) -> list[int]:
    """What each token is part of, as the automaton says without a budget."""
    parts = []
    for token in tokens:
        tag = token == (tok.end_think_id if inside else tok.think_id)
        parts.append(TAG if tag else IN_THINKING if inside else IN_CONTENT)
        inside ^= tag
    return parts


def read(
    tok: Tokenizer,
    tokens: list[int],
    *,
    stop: tuple[str, ...] = (),
    block: Block = "closed",
    chat: bool = True,
    at: Any = (),
) -> tuple[Result, list[ParsedOutput]]:
    """The result of these tokens, pushed in portions that end `at` these places, and the pieces."""
    row, pieces = RowText(tok, stop, chat=chat, block=block), []
    parts = parts_of(tok, tokens, block == "open")
    for a, b in zip([0, *at], [*at, len(tokens)], strict=True):
        pieces += row.push(tokens[a:b], parts[a:b], [True] * (b - a))
    pieces += row.flush()
    return row.result(hit_end=False, prompt_tokens=1), pieces


@pytest.mark.parametrize(
    ("before", "after", "kept", "block"),
    [
        ("7\n", "\n", "7", "closed"),
        ("\n", "\n", "", "closed"),  # nothing but newlines
        ("\n", "\n", "", "unknown"),
        ("\n\n7\n", "\n", "7", "open"),
        ("\n\n\n", "\n", "", "open"),  # two are the template's
        ("\n7\n8\n", "\n", "7\n8", "open"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_newlines_stop_at_once(tok: Tokenizer, before: str, after: str, kept: str, block: Block, chat: bool) -> None:
    (newline,) = tok.encode("\n")
    thought = [*tok.encode("why"), tok.end_think_id] if block == "open" else []
    wanted = [*thought, *[token for character in before + after for token in tok.encode(character)]]
    tokens = [*wanted, *[newline] * 5, *tok.encode("more")]
    result, _ = read(tok, tokens, stop=("\n\n",), block=block, chat=chat)
    assert (result.tokens, result.finish_reason) == (wanted, "stop")
    assert result.content == kept or (not chat and result.content.strip("\n") == kept)
    assert result.thinking == ("why" if thought else "")


def test_a_stop_string_may_begin_the_content_and_may_end_a_call(tok: Tokenizer) -> None:
    tokens = tok.encode("<think>a END</think>\n\nEND of it")
    assert read(tok, tokens, stop=("END",))[0].content == ""
    assert read(tok, tokens, stop=("\nEND",))[0].content == "END of it"
    result, _ = read(tok, tok.encode(f"Look.\n{CALL_TEXT} and"), stop=("</tool_call>",))
    assert (result.content, result.tool_calls) == ("Look.", [CALL])


def test_pieces_join_to_the_result_and_the_text_parses_to_the_same(tok: Tokenizer) -> None:
    rng = random.Random(0)
    words = [
        "7",
        "\n",
        "\n\n",
        "a b",
        "<think>",
        "</think>",
        CALL_TEXT,
        CALL_TEXT[:-12],
        "<tool_call>",
        "世",
        "{",
        "</",
    ]
    ids = [tok.encode(word) for word in words] + [[token] for token in tok.encode("🙂")[:2]]
    calls = stopped = 0
    for _ in range(300):
        tokens = [token for word in rng.choices(ids, k=rng.randint(0, 8)) for token in word]
        at = sorted(rng.choices(range(len(tokens) + 1), k=rng.randint(0, 8)))
        block = rng.choice(["open", "closed", "unknown"])
        result, pieces = read(tok, tokens, block=block, at=at)
        answer = ParsedOutput(result.thinking, result.content, result.tool_calls)
        assert join(pieces) == answer == parse_output(tok.decode(tokens), block=block)
        assert all(len(piece.tool_calls) == (not piece.thinking and not piece.content) for piece in pieces)
        calls += len(result.tool_calls)
        for chat in (True, False):
            once, _ = read(tok, tokens, stop=("\n7", "\n\n"), block=block, chat=chat)
            again, pieces = read(tok, tokens, stop=("\n7", "\n\n"), block=block, chat=chat, at=at)
            assert once == again
            assert join(pieces) == (again.thinking, again.content, again.tool_calls)
            stopped += again.finish_reason == "stop"
    assert calls > 50
    assert stopped > 50


def test_a_model_that_thinks_without_opening_a_block(tok: Tokenizer) -> None:
    tokens = tok.encode("First I think.</think>\n\nSeven.")
    result, _ = read(tok, tokens, block="unknown", at=[3])
    assert (result.thinking, result.content) == ("First I think.", "Seven.")
    assert result.thinking_tokens == tokens.index(tok.end_think_id)
    # Raw text is never in doubt, and neither is an answer after a block.
    assert read(tok, tokens)[0].content == "First I think.</think>\n\nSeven."


def test_text_fed_after_the_tag_is_content(tok: Tokenizer) -> None:
    thought, closing, after, own = map(tok.encode, ("a b", "\nstop", "\n\nThe answer is ", "7"))
    tokens = [*thought, *closing, tok.end_think_id, *after, *own]
    parts = [IN_THINKING] * len(thought + closing) + [TAG] + [IN_CONTENT] * len(after + own)
    fed = len(closing) + 1 + len(after)
    sampled = [True] * len(thought) + [False] * fed + [True]
    row = RowText(tok, ("\n\n",), chat=True, block="open")
    row.push([*tokens, 0], [*parts, NOTHING], [*sampled, True])
    row.flush()
    result = row.result(hit_end=True, prompt_tokens=1)
    assert (result.thinking, result.content) == ("a b\nstop", "The answer is 7")
    assert (result.thinking_tokens, result.budget_exhausted) == (len(thought), True)
    assert (result.log_probs, result.sampling_log_probs, result.sampled) == (None, None, None)


def test_a_budget_of_0_feeds_the_end_of_an_open_block(tok: Tokenizer) -> None:
    row = RowText(tok, (), chat=True, block="open")
    row.push(tok.encode("\n</think>\n\n7"), [IN_THINKING, TAG, *[IN_CONTENT] * 3], [False] * 4 + [True])
    result = row.result(hit_end=False, prompt_tokens=1)
    assert (result.thinking, result.thinking_tokens, result.budget_exhausted, result.content) == ("", 0, True, "7")


def test_log_probs_are_those_of_the_tokens(tok: Tokenizer) -> None:
    row = RowText(tok, ("x",), chat=True)
    (a, x) = tok.encode("a")[0], tok.encode("x")[0]
    row.push([a], [IN_CONTENT], [True], [-1.0], [-0.5])
    row.push([a, x, a], [IN_CONTENT] * 3, [True] * 3, [-2.0, -3.0, -4.0], [-0.25, 0.0, -9.0])
    result = row.result(hit_end=False, prompt_tokens=1)
    assert (result.tokens, result.content) == ([a, a, x], "aa")
    assert (result.log_probs, result.sampling_log_probs) == ([-1.0, -2.0, -3.0], [-0.5, -0.25, 0.0])
    assert result.sampled == [True] * 3


def test_what_comes_after_a_stop_string_is_not_counted(tok: Tokenizer) -> None:
    """Devices run steps past the stop before the host sees it: a block opened there is no part of the answer."""
    think, close, (x,) = tok.think_id, tok.end_think_id, tok.encode("x")
    result, _ = read(tok, [x, x, close, x, x, think, x, x, x], stop=("xx",), block="open", chat=False)
    assert result.tokens == [x, x, close, x, x]
    assert (result.thinking_tokens, result.budget_exhausted, result.finish_reason) == (2, False, "stop")


def run(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """The text passed on and whether it was stopped."""
    matcher, out, stopped = StopMatcher(stop), "", False
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
    return out + matcher.flush(), stopped


def by_definition(stop: tuple[str, ...], text: str) -> tuple[str, bool]:
    """One character at a time: the first place where a stop string ends, and the earliest beginning of one there."""
    for end in range(1, len(text) + 1):
        for start in range(end):
            if text[start:end] in stop:
                return text[:start], True
    return text, False


@pytest.mark.parametrize(
    ("stop", "pieces", "expected"),
    [
        ((), ["a", "b"], ("ab", False)),
        (("###",), ["a#", "b##", "#c", "d"], ("a#b", True)),
        (("###",), ["a##"], ("a##", False)),  # held back, and given back at the end
        (("stop",), ["sstop"], ("s", True)),
        (("aab",), ["a", "a", "a", "b"], ("a", True)),  # the false start overlaps the true one
        (("abcd", "bc"), ["abcd"], ("a", True)),  # "bc" is complete first
        (("bc", "abc"), ["zabc"], ("z", True)),  # both end here: the longer one
        (("x", "yy"), ["ayyx"], ("a", True)),
        (("\n\n",), ["a\n", "b\n", "\n"], ("a\nb", True)),
        (("思考",), ["不思", "考了"], ("不", True)),
    ],
)
def test_examples(stop: tuple[str, ...], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert run(stop, pieces) == expected


def test_any_text_in_any_pieces_stops_at_the_same_place() -> None:
    rng = random.Random(0)
    stopped = 0
    for _ in range(5_000):
        stop = tuple("".join(rng.choices("ab。", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3)))
        text = "".join(rng.choices("abc。", k=rng.randint(0, 30)))
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 10)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        expected = by_definition(stop, text)
        assert run(stop, pieces) == expected, (stop, pieces)
        stopped += expected[1]
    assert 1_000 < stopped < 4_500


def test_only_the_beginning_of_a_stop_string_is_held_back() -> None:
    rng = random.Random(1)
    for _ in range(1_000):
        stop = tuple("".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3)))
        beginnings = {s[:n] for s in stop for n in range(1, len(s))}
        matcher, pushed, emitted = StopMatcher(stop), "", ""
        for _ in range(10):
            piece = "".join(rng.choices("abc", k=rng.randint(0, 3)))
            text, stopped = matcher.push(piece)
            if stopped:
                break
            pushed, emitted = pushed + piece, emitted + text
            held = max((n for n in range(len(pushed) + 1) if pushed[len(pushed) - n :] in beginnings), default=0)
            assert emitted == pushed[: len(pushed) - held], (stop, pushed)


def test_nothing_comes_after_the_stop() -> None:
    matcher = StopMatcher(("!",))
    assert matcher.push("hi! there") == ("hi", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""
