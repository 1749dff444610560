"""Stop strings: found however the text is cut, never shown, and nothing held back that need not be."""

import random

import pytest

from qwen3_jax.infer.text import StopMatcher


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
