"""Qwen3's soft switches: `/think` and `/no_think` in a user's or the system's words; the last one decides.

The chat template does not know them: they are text, and a model obeys them because it was trained on conversations in
which the answer follows the last flag (Qwen3's report, arXiv 2505.09388, section 4.3). Draws here are shared by the
pocket model's conversations and by `train.fusion`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

Mode = Literal["think", "no_think", "hard"]  # thinking; the soft switch; the hard switch (`enable_thinking=False`)
Place = Literal["last", "earlier", "system"]

THINK, NO_THINK = "/think", "/no_think"
_FLAG = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")  # a word of its own: not the end of a path


def last_flag(messages: Iterable[Mapping[str, Any]]) -> str:
    """The flag that decides; "" where there is none.

    In:  user "2+2 /no_think", assistant "4", user "and 3+3? /think"     Out: "/think"
    """
    texts = [str(message.get("content") or "") for message in messages if message["role"] in ("user", "system")]
    return next((found[-1] for text in reversed(texts) if (found := _FLAG.findall(text))), "")


def draw_flag(rng: np.random.Generator, mode: Mode, flagged: float) -> str:
    """The flag of a sample in `mode`; `flagged` is the share of the thinking samples that say so.

    The hard switch wins over whatever is written, so there any flag may stand, or none.
    """
    says_so = rng.random() < flagged
    if mode == "hard":
        return ("", "", NO_THINK, THINK)[rng.integers(4)]
    return NO_THINK if mode == "no_think" else THINK if says_so else ""


def earlier_flags(mode: Mode, flag: str) -> tuple[str, ...]:
    """What may stand in turns before the deciding flag, drawn evenly.

    A flag holds until the next one, so where thinking is only the default no /no_think may stand before.
    """
    return ("", THINK) if mode == "think" and not flag else ("", THINK, NO_THINK)


def draw_place(rng: np.random.Generator, flag: str, earlier_turns: int, elsewhere: float = 0.3) -> Place:
    """Where the deciding flag stands: in the last user message, or (of a share `elsewhere`) in the one before it, or in
    the system message where there is no turn before."""
    if not flag or rng.random() < 1 - elsewhere:
        return "last"
    return "earlier" if earlier_turns else "system"


def append_flag(text: str, flag: str) -> str:
    """In: "2+2", "/no_think"     Out: "2+2 /no_think"."""
    return f"{text} {flag}".strip() if flag else text


def append_or_prepend(rng: np.random.Generator, text: str, flag: str, first: float = 0.1) -> str:
    """The last message with its flag, of a share `first` in front of the text."""
    return f"{flag} {text}" if flag and rng.random() < first else append_flag(text, flag)
