"""The pocket model's training examples: conversations as tokens, with the loss on the model's own turn."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from train import fusion
from train.data import Example
from train.pocket import prompts
from train.settings import DataConfig


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


def to_example(tok: ChatTokenizer, sample: prompts.Conversation, cut: float | None = None) -> Example:
    """Tokens and loss mask of one conversation.

    Prompt and completion are encoded apart, as in generation. Only the last assistant turn is learnt: earlier ones
    stand in the prompt without their thinking, as the template leaves them, which is not what the model would write.

    Args:
      cut: None, or where in 0..1 to cut the thinking; the stop-thinking text follows, without loss, then the answer.
    """
    answer = {"role": "assistant", "content": sample.content}
    if sample.mode == "think":
        answer["reasoning_content"] = sample.thinking
    texts = fusion.parts(tok, fusion.Fused(messages=(*sample.messages, answer), mode=sample.mode))
    parts = [(tok.encode(text), learnt) for text, learnt in texts]
    if cut is not None:
        opened = tok.encode(f"<think>\n{sample.thinking}\n")
        kept = 2 + int(cut * (len(opened) - 2))  # `<think>` and at least one token inside
        parts[1:] = [
            (opened[:kept], True),
            (tok.encode(prompts.STOP_THINKING_TEXT), False),
            (tok.encode(f"{sample.content}<|im_end|>"), True),
        ]
    tokens = [token for ids, _ in parts for token in ids]
    loss = [learnt for ids, learnt in parts for _ in ids]
    return Example(tokens=tokens, loss=loss)


@dataclasses.dataclass(frozen=True)
class PocketSource:
    """Endless training examples; example `index` depends on the seed and the index alone."""

    tok: ChatTokenizer
    data: DataConfig
    seed: int

    def example(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, 1, index))
        mixture = self.mixture(index)
        sample = prompts.conversation(rng, mixture)
        cut = float(rng.random()) if rng.random() < mixture.cut_thinking and sample.mode == "think" else None
        return to_example(self.tok, sample, cut)

    def mixture(self, index: int) -> prompts.Mixture:
        """What example `index` is drawn from: within the curriculum the longest chain grows from 2 steps."""
        mixture = self.data.tasks
        if index >= self.data.curriculum_examples:
            return mixture
        span = mixture.max_steps - mixture.min_steps
        longest = mixture.min_steps + round(span * index / self.data.curriculum_examples)
        return dataclasses.replace(mixture, max_steps=min(max(longest, 2), mixture.max_steps))
