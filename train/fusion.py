"""Thinking-mode fusion: conversations with and without thinking to training samples of both modes.

The shapes are those of table 9 in Qwen3's report (arXiv 2505.09388):

    data              the user's last words     what the model learns to write
    with thinking     {query} /think            <think>\n{thinking}\n</think>\n\n{response}
    with thinking     {query}                   the same: thinking is the default
    without           {query} /no_think         <think>\n\n</think>\n\n{response}
    without           {query}, hard switch      {response}: the template has written the empty block into the prompt

In a conversation of several turns earlier user messages get random flags; the last flag decides how the answer begins.
Earlier answers stand in the prompt as the chat template renders them, without their thinking.

The chat template does not know the flags `/think` and `/no_think`: they are text, and a model obeys them because it was
trained on conversations in which the answer follows the last flag. Draws are shared with the pocket model's
conversations.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from qwen3_jax.text.messages import normalize_messages
from qwen3_jax.train.settings import FusionConfig

Message = dict[str, Any]
Mode = Literal["think", "no_think", "hard"]  # thinking; the soft switch; the hard switch (`enable_thinking=False`)
Place = Literal["last", "earlier", "system"]
THINK, NO_THINK = "/think", "/no_think"
_FLAG = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")  # a word of its own: not the end of a path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fused:
    """One sample before it is text.

    Attributes:
      messages: the conversation with its flags; the last one is the answer to learn, with its thinking or without.
      mode: how the answer begins.
    """

    messages: tuple[Message, ...]
    mode: Mode

    @property
    def enable_thinking(self) -> bool:
        """What the chat template is told."""
        return self.mode != "hard"


def fuse(messages: Sequence[Mapping[str, Any]], config: FusionConfig, seed: Sequence[int]) -> Fused:
    """Draws a sample from a conversation that ends with the assistant's answer.

    Whether the answer has thinking (`reasoning_content`, or a block in `content`) decides the mode, but for the share
    that `drop_thinking` takes. A conversation that holds a flag already is left as it is.

    Args:
      messages: in OpenAI's format.
      seed: numbers that decide the draw, such as (seed, index of the example): the same ones give the same sample.

    Raises:
      ValueError: malformed messages; the last one is not an answer, or no user message is before it; the flag that the
        conversation has contradicts its answer.
    """
    rng = np.random.default_rng(tuple(seed))
    turns = [dict(message) for message in normalize_messages(messages)]
    users = [at for at, message in enumerate(turns[:-1]) if message["role"] == "user"]
    if not users or turns[-1]["role"] != "assistant":
        raise ValueError("messages must be questions and, last, an answer, got another order: leave the example out")
    thinking, _ = split_thinking(turns[-1])
    present = last_flag(turns[:-1])
    if present:
        if (present == NO_THINK) == bool(thinking):
            raise ValueError(
                f"an answer must follow the last flag, got {present} and an answer {'with' if thinking else 'without'} "
                "thinking: correct the example"
            )
        return Fused(messages=tuple(turns), mode="think" if thinking else "no_think")
    if thinking and rng.random() < config.drop_thinking:
        thinking = ""
        turns = [_without_thinking(turn) for turn in turns]
    mode: Mode = "think" if thinking else "hard" if rng.random() < config.hard else "no_think"
    flag = draw_flag(rng, mode, config.flagged)
    place = draw_place(rng, flag, len(users) - 1, config.elsewhere)
    choices = earlier_flags(mode, flag)
    for order, at in enumerate(users[:-1]):
        decides = place == "earlier" and order == len(users) - 2
        own = flag if decides else choices[rng.integers(len(choices))]
        turns[at]["content"] = append_flag(turns[at]["content"], own)
    if place == "last":
        turns[users[-1]]["content"] = append_or_prepend(rng, turns[users[-1]]["content"], flag)
    if place == "system":
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": ""})
        turns[0]["content"] = append_flag(turns[0]["content"], flag)
    return Fused(messages=tuple(turns), mode=mode)


def fuse_turns(messages: Sequence[Mapping[str, Any]], config: FusionConfig, number: int) -> list[Fused]:
    """A sample for each answer of a conversation, with the turns before it, each with flags of its own.

    An answer with `weight: 0` gives none.

    Args:
      number: of the example; it decides the draws, with `config.seed`.
    """
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    turns = [
        at
        for at, message in enumerate(messages)
        if message.get("role") == "assistant" and message.get("weight", 1) != 0 and _asked(messages[:at])
    ]
    return [fuse(plain[: at + 1], config, (config.seed, number, at)) for at in turns]


def split_thinking(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Thinking and content of an answer, which may have its thinking in a block of its content.

    In: {"content": "<think>\\n2+2=4\\n</think>\\n\\n4"}     Out: ("2+2=4", "4")
    """
    thinking, content = answer.get("reasoning_content"), answer.get("content") or ""
    if isinstance(thinking, str) or "</think>" not in content:
        return (thinking or "").strip("\n"), content
    before, _, after = content.rpartition("</think>")
    return before.rpartition("<think>")[2].strip("\n"), after.lstrip("\n")


def last_flag(messages: Iterable[Mapping[str, Any]]) -> str:
    """The flag that decides, in a user's or the system's words; "" where there is none.

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


def _asked(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message.get("role") == "user" for message in messages)


def _without_thinking(message: Message) -> Message:
    """An answer as it is without thinking; in a loop of tool calls the template would show that of earlier steps."""
    if message["role"] != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept | {"content": split_thinking(message)[1]}
