"""What a generation gives back."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One answer.

    Attributes:
      tokens: everything after the prompt: fed tokens and the end token included, up to the one that completes a stop
        string.
      thinking: text of the think block, "" when there was none.
      content: text of the answer, without tool calls; "" when there was none, never None.
      tool_calls: parsed calls, {"type": "function", "function": {"name": str, "arguments": dict}} each, as `render`
        takes them back.
      thinking_tokens: tokens sampled inside the block; at most the budget.
      budget_exhausted: whether the budget closed the block, so that tokens were fed.
      finish_reason: "stop" for an end token or a stop string, "length" for max_new_tokens.
      prompt_tokens: length of the prompt.
      log_probs, sampling_log_probs, sampled: one entry a token, None unless asked for: its log-probability at
        temperature 1, the one it was sampled with, and whether it was sampled (not fed).
    """

    tokens: list[int]
    thinking: str
    content: str
    tool_calls: list[dict[str, Any]]
    thinking_tokens: int
    budget_exhausted: bool
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    log_probs: list[float] | None = None
    sampling_log_probs: list[float] | None = None
    sampled: list[bool] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of one answer as it is made. The pieces of an answer join to its result, field by field.

    Attributes:
      index: which input it belongs to.
      thinking, content: text since the last piece of this input.
      tool_calls: a call that is complete; such a piece has no text.
      result: the whole answer, with the last piece.
    """

    index: int
    thinking: str = ""
    content: str = ""
    tool_calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    result: Result | None = None
