"""The pocket model's training examples: conversations as tokens, with the loss on the model's own turn."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from qwen3_jax.train.data.chat_loss_mask import ChatTokenizer, answer_parts
from qwen3_jax.train.data.packing import Example
from qwen3_jax.train.pocket import prompts, tasks
from qwen3_jax.train.settings import DataConfig

SMALL_TALK = "small_talk"


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
    messages, end = [*sample.messages, answer], "<|im_end|>"
    texts = answer_parts(tok, messages, end=end, enable_thinking=sample.mode != "hard")
    parts = [(tok.encode(text), learnt) for text, learnt in texts]
    if cut is not None:
        opened = tok.encode(f"<think>\n{sample.thinking}\n")
        kept = 2 + int(cut * (len(opened) - 2))  # `<think>` and at least one token inside
        parts[1:] = [
            (opened[:kept], True),
            (tok.encode(prompts.STOP_THINKING_TEXT), False),
            (tok.encode(sample.content + end), True),
        ]
    tokens = [token for ids, _ in parts for token in ids]
    loss = [learnt for ids, learnt in parts for _ in ids]
    return Example(tokens=tokens, loss=loss)


@dataclasses.dataclass(frozen=True)
class PocketSource:
    """Endless training examples (`train.data.Documents`); example `index` depends on the seed and the index alone.

    Attributes:
      split: of the problems; the two sides share none.
    """

    tok: ChatTokenizer
    data: DataConfig
    seed: int
    split: tasks.Split = "train"

    @property
    def domain_names(self) -> tuple[str, ...]:
        return (*self.data.tasks.families, SMALL_TALK)

    def pieces(self, index: int) -> tuple[Example, ...]:
        """The example, which must fit in a row.

        Raises:
          ValueError: it does not.
        """
        example = self.example(int(index))
        if len(example.tokens) > self.data.length:
            raise ValueError(
                f"data.length must hold every example, got {self.data.length} for one of {len(example.tokens)} tokens: "
                "raise it"
            )
        return (example,)

    def name(self, index: int) -> str:
        return f"pocket:{index}"

    def example(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, 1 if self.split == "train" else 3, index))
        mixture = self.mixture(index)
        sample = prompts.conversation(rng, mixture, self.split)
        cut = float(rng.random()) if rng.random() < mixture.cut_thinking and sample.mode == "think" else None
        domain = self.domain_names.index(SMALL_TALK if sample.problem is None else sample.problem.family)
        return dataclasses.replace(to_example(self.tok, sample, cut), domain=domain, combination=domain)

    def mixture(self, index: int) -> prompts.TaskMixture:
        """What example `index` is drawn from: within the curriculum the longest chain grows from 2 steps."""
        mixture = self.data.tasks
        if self.split != "train" or index >= self.data.curriculum_examples:
            return mixture
        span = mixture.max_steps - mixture.min_steps
        longest = mixture.min_steps + round(span * index / self.data.curriculum_examples)
        return dataclasses.replace(mixture, max_steps=min(max(longest, 2), mixture.max_steps))


class PocketWorld:
    """What a run trains on that names no sources, see `train.data.make.World`."""

    def documents(self, tok: ChatTokenizer, data: DataConfig, seed: int) -> tuple[PocketSource, PocketSource]:
        source = PocketSource(tok, data, seed)
        return source, dataclasses.replace(source, split="held_out")

    def texts(self, data: DataConfig, count: int, seed: int) -> Iterator[str]:
        """Text of the tasks as the model will read it, without the chat template's added tokens.

        The stop-thinking text and the template's own words stand in often enough that each of their words becomes a
        token.
        """
        rng = np.random.default_rng((seed, 0))
        closing = prompts.STOP_THINKING_TEXT.split("</think>")[0]
        for index in range(count):
            sample = prompts.conversation(rng, data.tasks)
            for message in sample.messages:
                yield f"{message['role']}\n"
                yield message["content"]
            yield f"assistant\n{sample.thinking}\n"
            yield "\n\n" + sample.content
            if index % 4 == 0:
                yield closing
