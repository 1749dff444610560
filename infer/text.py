"""How the tokens of one row become its text: thinking, content and tool calls, up to a stop string."""

from qwen3_jax.infer.automaton import END, IN_CONTENT, IN_THINKING, NOTHING, TAG
from qwen3_jax.infer.results import Result
from qwen3_jax.text.parsing import AnswerParser, Block, ParsedOutput, join
from qwen3_jax.text.streaming import IncrementalDetokenizer, partial_suffix
from qwen3_jax.text.tokenizer import Tokenizer

_TEMPLATE_NEWLINES = 2  # written by the template after </think>


class RowText:
    """Turns the tokens of one row into the parts of its answer, and watches for stop strings in the content.

    What was thought and fed is counted here, because devices run some steps past a stop string before the host sees it.

    Stop strings are looked for in the content as generated, before any newline is trimmed, but for the two newlines
    that the template puts after a closing tag.

    Args:
      stop: the strings that end the answer.
      chat: the prompt came from messages: content loses its outer newlines and tool calls are parsed. Raw text is
        continued as it stands.
      block: where the answer begins, see `AnswerParser`.
      min_tokens: no stop string is looked for in the text of so many tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...], *, chat: bool, block: Block = "closed", min_tokens: int = 0
    ):
        self.stopped = False
        self._min_tokens = min_tokens
        self._tokens: list[int] = []
        self._sampled: list[bool] = []
        self._log_probs: tuple[list[float], list[float]] = ([], [])
        self.thinking_tokens = 0
        self._think, self._end_thinking = tokenizer.think_id, tokenizer.end_think_id
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._matcher = StopMatcher(stop)
        self._parser = AnswerParser(block, plain=not chat)
        self._parts: list[ParsedOutput] = []
        self._template_newlines = 0

    def push(
        self,
        tokens: list[int],
        parts: list[int],
        sampled: list[bool],
        log_probs: list[float] | None = None,
        sampling_log_probs: list[float] | None = None,
    ) -> list[ParsedOutput]:
        """Adds tokens with what each is part of and whether it was sampled; returns what is new of the answer."""
        for index, (token, part) in enumerate(zip(tokens, parts, strict=True)):
            if part == NOTHING or self.stopped:
                break
            self._tokens.append(token)
            self._sampled.append(sampled[index])
            for kept, values in zip(self._log_probs, (log_probs, sampling_log_probs), strict=True):
                kept.extend([] if values is None else values[index : index + 1])
            self._read(token, part, sampled[index])
        return self._take()

    def flush(self) -> list[ParsedOutput]:
        """What was held back until now, at the end of the row."""
        self._end_segment()
        self._parser.finish()
        return self._take()

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    def result(self, *, hit_end: bool, prompt_tokens: int) -> Result:
        whole = join(self._parts)
        log_probs, sampling_log_probs = self._log_probs
        return Result(
            tokens=self._tokens,
            **whole._asdict(),
            thinking_tokens=self.thinking_tokens,
            budget_exhausted=not all(self._sampled),
            finish_reason="stop" if hit_end or self.stopped else "length",
            prompt_tokens=prompt_tokens,
            log_probs=log_probs or None,
            sampling_log_probs=sampling_log_probs or None,
            sampled=self._sampled if log_probs else None,
        )

    def _read(self, token: int, part: int, sampled: bool) -> None:
        """Adds one token to the text. Of the fed text, TAG marks what stands after the tag and is no content."""
        block = self._parser.block
        if part == IN_THINKING:
            self.thinking_tokens += sampled
            self._parser.text(self._detokenizer.push([token]))
        elif token == self._end_thinking and block != "closed":
            self._end_segment()
            if not self.stopped:
                self._parser.close_block()
                self._template_newlines = _TEMPLATE_NEWLINES
                if block == "unknown":
                    self.thinking_tokens = len(self._tokens) - 1
        elif part == IN_CONTENT:
            self._add_content(self._detokenizer.push([token]))
        elif part == TAG and token == self._think:
            self._end_segment()
            if not self.stopped:
                self._parser.open_block()
        assert part in (IN_THINKING, IN_CONTENT, TAG, END)

    def _end_segment(self) -> None:
        """Before a tag, or at the end: half a character and half a stop string are text."""
        text = self._detokenizer.flush()
        if self._parser.block == "open":
            self._parser.text(text)
        elif not self.stopped:
            self._add_content(text)
            self._parser.text(self._matcher.flush())

    def _add_content(self, text: str) -> None:
        if self._template_newlines and text:
            kept = text.lstrip("\n")
            dropped = min(self._template_newlines, len(text) - len(kept))
            text = text[dropped:]
            self._template_newlines = 0 if text else self._template_newlines - dropped
        if len(self._tokens) > self._min_tokens:
            text, self.stopped = self._matcher.push(text)
        self._parser.text(text)

    def _take(self) -> list[ParsedOutput]:
        parts = self._parser.take()
        self._parts += parts
        return parts


class StopMatcher:
    """Passes text on up to the first stop string.

    The stop string that is complete first ends the text; of several that end at the same character, the longest does.
    What is passed on does not depend on how the text was cut into pieces: text that could be the beginning of a stop
    string is held back until the next piece decides.

        StopMatcher(("###",)).push("a#")  -> ("a", False)     "#" is held back
                             .push("b##") -> ("#b", False)    "##" is held back
                             .push("#c")  -> ("", True)       the stop string and what follows it are dropped
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        assert all(stop), "an empty stop string is refused by GenerationConfig"
        self._stop = stop
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece; returns the text that is certain by now, and whether a stop string was found."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)[1]], True
        hold = partial_suffix(text, self._stop)
        self._held = text[hold:]
        return text[:hold], False

    def flush(self) -> str:
        """The text held back, when no more comes; nothing after a stop string."""
        held, self._held = self._held, ""
        return held
