"""Thinking-mode fusion: conversations with and without thinking to training samples of both modes.

The shapes are those of table 9 in Qwen3's report (arXiv 2505.09388):

    data              the user's last words     what the model learns to write
    with thinking     {query} /think            <think>\\n{thinking}\\n</think>\\n\\n{response}
    with thinking     {query}                   the same: thinking is the default
    without           {query} /no_think         <think>\\n\\n</think>\\n\\n{response}
    without           {query}, hard switch      {response}: the template has written the empty block into the prompt

In a conversation of several turns earlier user messages get random flags; the last flag decides how the answer begins.
Earlier answers stand in the prompt as the chat template renders them, without their thinking.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen3_jax.messages import normalize_messages
from train.flags import (
    NO_THINK,
    Mode,
    append_flag,
    append_or_prepend,
    draw_flag,
    draw_place,
    earlier_flags,
    last_flag,
)
from train.settings.fusion import FusionConfig

Message = dict[str, Any]


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


def _without_thinking(message: Message) -> Message:
    """An answer as it is without thinking; in a loop of tool calls the template would show that of earlier steps."""
    if message["role"] != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept | {"content": split_thinking(message)[1]}


def split_thinking(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Thinking and content of an answer, which may have its thinking in a block of its content.

    In: {"content": "<think>\\n2+2=4\\n</think>\\n\\n4"}     Out: ("2+2=4", "4")
    """
    thinking, content = answer.get("reasoning_content"), answer.get("content") or ""
    if isinstance(thinking, str) or "</think>" not in content:
        return (thinking or "").strip("\n"), content
    before, _, after = content.rpartition("</think>")
    return before.rpartition("<think>")[2].strip("\n"), after.lstrip("\n")


def parts(tok: Any, sample: Fused, tools: Any = None) -> list[tuple[str, bool]]:
    """Prompt and completion of a sample: texts to encode apart, as in generation, and whether they are learnt.

    The completion is what the chat template writes of the last message after the prompt, up to the token that ends the
    turn: thinking block (an empty one without thinking), content and tool calls.

    Raises:
      ValueError: the template does not continue its own prompt with the answer.
    """
    prompt = tok.render(list(sample.messages[:-1]), tools, sample.enable_thinking, True)
    whole = tok.render(list(sample.messages), tools, sample.enable_thinking, False)
    if not whole.startswith(prompt):
        raise ValueError(
            f"the chat template must continue its prompt with the answer, got {whole[-40:]!r} at its end: use a "
            "template of Qwen3's hybrid models"
        )
    return [(prompt, False), (whole.removeprefix(prompt).removesuffix("\n"), True)]
