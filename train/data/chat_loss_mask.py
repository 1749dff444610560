"""Conversations to training examples, through the tokenizer's own chat template, with the loss on assistant turns."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Thinking = Literal["template", "keep"]
_MARK = "\x00turn\x00"  # stands for a turn whose end in the prompt is looked for


@runtime_checkable
class ChatTokenizer(Protocol):
    """The part of `qwen3_jax`'s tokenizer that making examples needs."""

    def encode(self, text: str) -> list[int]: ...

    def render(
        self,
        messages: Any,
        tools: Any = None,
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
    ) -> str: ...


Part = tuple[str, bool]  # text, and whether the model is to learn to write it


def chat_parts(
    tok: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    end: str,
    tools: Any = None,
    enable_thinking: bool = True,
    thinking: Thinking = "template",
) -> list[list[Part]]:
    """The examples of one conversation, each as texts with and without loss.

    What is learnt of a turn is what the template writes of it when it is the last one, after the prompt: its thinking
    block (an empty one where it has no thinking), its content and tool calls, and the token that ends it.

    template: one example for each assistant turn. Its prompt is the one that inference renders, in which the official
      template has taken the thinking out of earlier turns; so each turn is learnt exactly as it is to be said.
    keep: one example for the conversation. Every turn stands in it with its thinking, and every turn is learnt: what
      a single rendering by the template can not give, because it strips the thinking that was to be learnt.

    A turn with `weight: 0` (OpenAI's fine-tuning format) is not learnt, nor is one that has nothing before it.

    Args:
      end: the text of the token that ends a turn.

    Raises:
      ValueError: the template does not continue its own prompt with the turn.
    """
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    turns = [k for k, message in enumerate(plain) if k and message.get("role") == "assistant"]
    learnt = [k for k in turns if messages[k].get("weight", 1) != 0]

    def prompt(before: Sequence[Any]) -> str:
        return tok.render(list(before), tools, enable_thinking, True)

    def completion(turn: int, after: str) -> str:
        whole = tok.render(plain[: turn + 1], tools, enable_thinking, False)
        said, found, rest = whole[len(after) :].rpartition(end)
        if not whole.startswith(after) or not found or rest.strip():
            raise ValueError(
                f"messages[{turn}] must continue the prompt as the chat template renders it, got another beginning: "
                "join assistant turns that follow one another, and take the thinking out where enable_thinking is off"
            )
        return said + end

    if thinking == "template":
        prompts = [prompt(plain[:turn]) for turn in learnt]
        return [[(text, False), (completion(turn, text), True)] for turn, text in zip(learnt, prompts, strict=True)]
    parts: list[Part] = []
    for place, turn in enumerate(turns if learnt else ()):
        text = prompt(plain[:turn])
        if place:
            marked = {"role": "assistant", "content": _MARK}
            last = turns[place - 1]
            between = prompt([*plain[:last], marked, *plain[last + 1 : turn]]).rpartition(_MARK)[2]
            parts.append((between.removeprefix(end), False))
        else:
            parts.append((text, False))
        parts.append((completion(turn, text), turn in learnt))
    return [parts] if parts else []


def answer_parts(
    tok: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    end: str,
    tools: Any = None,
    enable_thinking: bool = True,
) -> list[Part]:
    """Prompt and completion where only the last message is to be learnt; see `chat_parts`."""
    context = [{**message, "weight": 0} for message in messages[:-1]]
    (parts,) = chat_parts(tok, [*context, messages[-1]], end=end, tools=tools, enable_thinking=enable_thinking)
    return parts


def encode_parts(tok: ChatTokenizer, parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """int32[n] tokens and bool[n] loss mask; the parts are encoded apart, as in generation."""
    ids = [tok.encode(text) for text, _ in parts]
    loss = np.repeat([learnt for _, learnt in parts], [len(part) for part in ids])
    return np.array([token for part in ids for token in part], np.int32), loss.astype(bool)
