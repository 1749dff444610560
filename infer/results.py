"""What a generation gives back, and how a row's tokens become its text."""

import dataclasses
from typing import Any, Literal

from qwen3_jax.infer.automaton import END, IN_CONTENT, IN_THINKING, NOTHING, TAG, UNLIMITED
from qwen3_jax.infer.text_stop import StopMatcher
from qwen3_jax.text.parsing import parse_tool_calls
from qwen3_jax.text.streaming import IncrementalDetokenizer
from qwen3_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One answer.

    Attributes:
      tokens: everything after the prompt: forced tokens and the end token included.
      thinking: text of the think block, "" when there was none.
      content: text of the answer, without tool calls; "" when there was none, never None.
      tool_calls: parsed calls, {"type": "function", "function": {"name": str, "arguments": dict}} each, as `render`
        takes them back.
      thinking_tokens: tokens sampled inside the block; at most the budget.
      budget_exhausted: whether the budget closed the block.
      finish_reason: "stop" for an end token or a stop string, "length" for max_new_tokens.
      prompt_tokens: length of the prompt.
    """

    tokens: list[int]
    thinking: str
    content: str
    tool_calls: list[dict[str, Any]]
    thinking_tokens: int
    budget_exhausted: bool
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of one answer as it is made.

    Attributes:
      index: which input it belongs to.
      thinking, content: text since the last piece of this input.
      result: the whole answer, with the last piece.
    """

    index: int
    thinking: str
    content: str
    result: Result | None = None


class _TextChannel:
    """Text of one part of the answer, without the newlines around it that the template puts there."""

    def __init__(self, tokenizer: Tokenizer, strip: bool):
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._strip = strip
        self._leading = strip
        self._held = ""  # newlines that may turn out to be the last

    def skip_leading(self) -> None:
        self._leading = True

    def push(self, token: int) -> str:
        return self._clean(self._detokenizer.push([token]))

    def flush(self) -> str:
        return self._clean(self._detokenizer.flush())

    def _clean(self, text: str) -> str:
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        if not self._strip:
            return text
        text = self._held + text
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        return kept


class RowText:
    """Turns the tokens of one row into thinking and content, and watches for stop strings in the content.

    Args:
      chat: the prompt came from messages: content is stripped of newlines and tool calls are parsed. Raw text is
        continued as it stands.
      open_block, budget: as the automaton has them. What was thought is counted here again, because devices run some
        steps past a stop string before the host sees it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        *,
        chat: bool,
        open_block: bool = False,
        budget: int = UNLIMITED,
    ):
        self.tokens: list[int] = []
        self.stopped = False
        self._inside, self._budget = open_block, budget
        self._thought = 0
        self._exhausted = open_block and budget == 0
        self._chat = chat
        self._thinking_channel = _TextChannel(tokenizer, strip=True)
        self._content_channel = _TextChannel(tokenizer, strip=chat)
        self._matcher = StopMatcher(stop)
        self._think, self._end_thinking = tokenizer.think_id, tokenizer.end_think_id
        self._thinking = ""
        self._content = ""

    def push(self, tokens: list[int], parts: list[int]) -> tuple[str, str]:
        """Adds tokens with what each is part of; returns new thinking and content text."""
        thinking, content = "", ""
        for token, part in zip(tokens, parts, strict=True):
            if part == NOTHING or self.stopped:
                break
            self.tokens.append(token)
            self._count(token, part)
            if part == IN_THINKING:
                thinking += self._thinking_channel.push(token)
            elif part == TAG and token == self._end_thinking:
                self._content_channel.skip_leading()
            elif part == IN_CONTENT:
                text, self.stopped = self._matcher.push(self._content_channel.push(token))
                content += text
            assert part in (IN_THINKING, IN_CONTENT, TAG, END)
        return self._keep(thinking, content)

    def flush(self) -> tuple[str, str]:
        """Text held back until now, at the end of the row."""
        thinking, content = self._thinking_channel.flush(), ""
        if not self.stopped:
            content, self.stopped = self._matcher.push(self._content_channel.flush())
            if not self.stopped:
                content += self._matcher.flush()
        return self._keep(thinking, content)

    def _count(self, token: int, part: int) -> None:
        if part == IN_THINKING and self._thought < self._budget:  # afterwards the text fed at the budget
            self._thought += 1
        elif part == TAG:
            self._inside = token == self._think
        if part in (IN_THINKING, TAG) and self._inside and self._thought >= self._budget:
            self._exhausted = True

    def result(self, *, hit_end: bool, prompt_tokens: int) -> Result:
        content, tool_calls = parse_tool_calls(self._content) if self._chat else (self._content, [])
        return Result(
            tokens=self.tokens,
            thinking=self._thinking,
            content=content,
            tool_calls=tool_calls,
            thinking_tokens=self._thought,
            budget_exhausted=self._exhausted,
            finish_reason="stop" if hit_end or self.stopped else "length",
            prompt_tokens=prompt_tokens,
        )

    def _keep(self, thinking: str, content: str) -> tuple[str, str]:
        self._thinking += thinking
        self._content += content
        return thinking, content
