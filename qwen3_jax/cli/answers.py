"""One answer on its way to the user: thinking dimmed on a terminal, plain text in a pipe."""

import json
import re
import sys
from typing import Any

from rich.console import Console

from qwen3_jax.infer import Piece, Result

# A model must not steer the terminal: every control character but newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class AnswerWriter:
    """Writes the pieces of one answer to stdout as they come.

    Attributes:
      thinking, content, tool_calls: all that was written (or held back) so far.

    On a terminal thinking is dimmed and a blank line parts it from the answer. Elsewhere only the answer is written,
    or, with `show_thinking`, `<think>`, the thinking and `</think>` on lines of their own before it. A tool call is
    written as one line of JSON between its tags.
    """

    def __init__(self, show_thinking: bool | None = None) -> None:
        self._console = Console(highlight=False)
        self._terminal = self._console.is_terminal
        self._show = self._terminal if show_thinking is None else show_thinking
        self._open = False
        self.thinking = ""
        self.content = ""
        self.tool_calls: list[dict[str, Any]] = []
        self._last = ""  # character of the answer written

    def push(self, piece: Piece) -> None:
        """Writes what is new."""
        thinking, content = piece.thinking, piece.content
        if thinking and self._show:
            if not self._open and not self._terminal:
                self._write("<think>\n")
            self._open = True
            self._write(thinking, style="dim")
        self.thinking += thinking
        for call in piece.tool_calls:
            text = json.dumps(call["function"], ensure_ascii=False)
            content = ("\n" if self._last not in ("", "\n") else "") + f"<tool_call>\n{text}\n</tool_call>"
        if content:
            self._close_thinking()
            self._write(content)
            self._last = content[-1]
        self.content += piece.content
        self.tool_calls += piece.tool_calls

    def close(self) -> None:
        """Ends the last line."""
        self._close_thinking()
        if self._terminal or self._last != "\n":
            self._write("\n")

    def footer(self, result: Result, seconds: float) -> None:
        """One dimmed line of numbers on a terminal. Elsewhere stderr says when the answer is not whole."""
        if not self._terminal:
            if result.finish_reason == "length":
                where = "" if result.content else " inside its thinking"
                print(f"warning: cut at {len(result.tokens)} tokens{where}: raise --max-new-tokens", file=sys.stderr)
            return
        parts = [f"{len(result.tokens)} tokens"]
        if result.thinking_tokens:
            parts.append(f"{result.thinking_tokens} thinking")
        if result.budget_exhausted:
            parts.append("thinking budget reached")
        if result.finish_reason == "length":
            parts.append("cut at the longest length")
        parts.append(f"{len(result.tokens) / seconds:.1f} tokens/s")
        self._write(f"[{', '.join(parts)}]\n", style="dim")

    def _close_thinking(self) -> None:
        if self._open:
            self._write("\n\n" if self._terminal else "\n</think>\n\n")
        self._open = False

    def _write(self, text: str, style: str | None = None) -> None:
        if self._terminal:
            text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        if style and self._terminal:
            self._console.out(text, style=style, end="", highlight=False)
        else:
            print(text, end="", flush=True)
