"""Annotators by rule: length, repetition, kinds of characters, and the quality rules of Gopher.

Thresholds are those of Gopher (Rae et al., 2112.11446, appendix A1.1), which were set for web pages. A word is a run of
letters and digits, a number included; a Chinese or Japanese character is a word.
"""

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_WORD = re.compile(r"[㐀-䶿一-鿿぀-ヿ]|[^\W㐀-䶿一-鿿぀-ヿ]+")
_UNSPACED = re.compile(r"[㐀-䶿一-鿿぀-ヿ฀-໿က-႟ក-៿]")  # scripts without spaces: no word lengths

LENGTHS = (256, 1024, 4096, 16384, 65536)  # characters, upper ends
TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # size -> largest share of the characters in the most frequent one
DUPLICATE_NGRAM = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # ... in those that come more than once
DUPLICATE_LINES, DUPLICATE_LINE_CHARACTERS = 0.30, 0.20


class Length:
    """Label `length`: the least of 256, 1024, 4096, 16384, 65536 characters that the text stays within, or "more"."""

    name = "length"
    labels = ("length",)

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        size = len(record["text"])
        return {"length": next((str(end) for end in LENGTHS if size <= end), "more")}


class Repetition:
    """Label `repetition`: "high" where one of Gopher's repetition rules would remove the text, else "low"."""

    name = "repetition"
    labels = ("repetition",)

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        return {"repetition": "high" if repeats(record["text"]) else "low"}


class Characters:
    """Labels `script` and `form`.

    script: where most letters belong, as Unicode names it ("latin", "cyrillic", "cjk" ...; "none" without letters).
    form: "numeric" where digits are more than a fifth of what is no space, "code" where the marks of programs
    ({}[]()=<>;_#|/\\ and backticks) are more than a tenth, "symbols" where less than half are letters, else "prose".
    C4 (Raffel et al., 1910.10683, section 2.2) drops a page for one curly bracket; a share keeps what mentions code.
    """

    name = "characters"
    labels = ("script", "form")

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        return {"script": script(record["text"]), "form": form(record["text"])}


class Heuristic:
    """Label `heuristic`: "pass" where the text meets Gopher's quality rules, else "fail". No judge of what is said.

    50 to 100,000 words; mean length of a word 3 to 10 (scripts with spaces); at most a tenth as many # and ... as
    words; at most 90% of the lines begin with a bullet and 30% end with an ellipsis; 80% of the words have a letter.
    The rule of two stop words is left out: it is one of English.
    """

    name = "heuristic"
    labels = ("heuristic",)

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        return {"heuristic": "pass" if gopher_quality(record["text"]) else "fail"}


def words_of(text: str) -> list[str]:
    """In: "It's 12 o'clock. 你好"      Out: ["It", "s", "12", "o", "clock", "你", "好"]"""
    return _WORD.findall(text)


def duplicate_line_share(text: str) -> tuple[float, float]:
    """The share of lines, and of characters in lines, that were there before. Empty lines do not count.

    In: "ab\\nab\\ncdef"      Out: (1/3, 2/8)
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    again = [line for line, count in collections.Counter(lines).items() for _ in range(count - 1)]
    characters = sum(map(len, lines))
    return len(again) / max(len(lines), 1), sum(map(len, again)) / max(characters, 1)


def top_ngram_share(words: Sequence[str], size: int) -> float:
    """The share of the words' characters that the most frequent n-gram takes, counted as often as it comes; 0 where
    none comes twice.

    In: a b a b c, size 2      Out: 4/5
    """
    grams = collections.Counter(zip(*(words[at:] for at in range(size)), strict=False))
    if not grams or max(grams.values()) < 2:
        return 0.0
    most = max(grams.values())
    longest = max(sum(map(len, gram)) for gram, count in grams.items() if count == most)
    return min(1.0, most * longest / max(sum(map(len, words)), 1))


def duplicate_ngram_share(words: Sequence[str], size: int) -> float:
    """The share of the words' characters inside n-grams that come more than once, each character counted once.

    In: a b c a b, size 2      Out: 4/5
    """
    grams = list(zip(*(words[at:] for at in range(size)), strict=False))
    counts = collections.Counter(grams)
    inside = [False] * len(words)
    for at, gram in enumerate(grams):
        if counts[gram] > 1:
            inside[at : at + size] = [True] * size
    repeated = sum(len(word) for word, yes in zip(words, inside, strict=True) if yes)
    return repeated / max(sum(map(len, words)), 1)


def repeats(text: str) -> bool:
    """Whether one of Gopher's repetition rules is broken (its paragraph rules are the line rules here)."""
    lines, characters = duplicate_line_share(text)
    if lines > DUPLICATE_LINES or characters > DUPLICATE_LINE_CHARACTERS:
        return True
    words = words_of(text)
    return any(top_ngram_share(words, size) > most for size, most in TOP_NGRAM.items()) or any(
        duplicate_ngram_share(words, size) > most for size, most in DUPLICATE_NGRAM.items()
    )


def script(text: str) -> str:
    """The first word of the Unicode name that most of the letters share.

    In: "abc где"  Out: "latin" (a tie goes to the first)
    """
    counts = collections.Counter(
        unicodedata.name(letter, "none").split()[0].split("-")[0].lower() for letter in text if letter.isalpha()
    )
    return counts.most_common(1)[0][0] if counts else "none"


def form(text: str) -> str:
    """See `Characters`."""
    shown = [c for c in text if not c.isspace()]
    size = max(len(shown), 1)
    if sum(c.isdigit() for c in shown) / size > 0.2:
        return "numeric"
    if sum(c in "{}[]()=<>;_#|/\\`" for c in shown) / size > 0.1:
        return "code"
    letters = sum(unicodedata.category(c)[0] in "LM" for c in shown)  # marks are half of Devanagari
    return "symbols" if letters / size < 0.5 else "prose"


def gopher_quality(text: str) -> bool:
    """See `Heuristic`."""
    words, lines = words_of(text), [line.strip() for line in text.splitlines() if line.strip()]
    if not 50 <= len(words) <= 100_000:
        return False
    unspaced = len(_UNSPACED.findall(text)) > len(words) / 2
    mean = sum(map(len, words)) / len(words)
    if not unspaced and not 3 <= mean <= 10:
        return False
    if max(text.count("#"), text.count("...") + text.count("…")) / len(words) > 0.1:
        return False
    if sum(line[0] in "•‣-*" for line in lines) / len(lines) > 0.9:
        return False
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return False
    return sum(any(c.isalpha() for c in word) for word in words) / len(words) >= 0.8
