"""`qwen3-jax chat`: a conversation in the terminal, or over a pipe, one message a line."""

import argparse
import contextlib
import dataclasses
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from qwen3_jax.cli.arguments import Parser, did_you_mean
from qwen3_jax.cli.boundary import explain, say
from qwen3_jax.cli.options import add_generation_options, add_model_options, generation_values, read_mesh, stay_alone

COMMANDS = {
    "/think": "think from the next message on (Qwen's soft switch, added to your messages)",
    "/no_think": "answer at once from the next message on",
    "/budget N": "think at most N tokens; /budget off for no limit",
    "/reset": "forget the conversation",
    "/help": "show this",
    "/exit": "leave, as Ctrl-D does",
}
_HELP = "\n".join(f"  {name:<11}{what}" for name, what in COMMANDS.items())
_EPILOG = f"""\
on a line of their own:
{_HELP}
Inside a message /think and /no_think reach the model as they stand. Ctrl-C stops the answer and keeps what was written;
the conversation goes on. In a pipe every line of stdin is a message, and stdout gets the answers alone.
"""


def parser() -> Parser:
    result = Parser("chat", "Talks with a model, turn by turn.", _EPILOG)
    result.add_argument("--system", metavar="TEXT", help="a system message")
    add_model_options(result)
    add_generation_options(result)
    return result


def run(args: argparse.Namespace) -> int:
    """Answers line after line until /exit or the end of the input."""
    from qwen3_jax.cli.common import load, open_model
    from qwen3_jax.infer import GenerationConfig
    from qwen3_jax.infer.rows import prepare

    config = GenerationConfig(**generation_values(args))  # type: ignore[arg-type]
    mesh = read_mesh(args.mesh)
    stay_alone("chat")
    opened = open_model(args)
    conversation = Conversation(opened.tok, config, args.system)
    # What would refuse every turn is refused at the start.
    prepare(opened.model, opened.tok, [conversation.messages_with("Hello")], config, None)
    model, params, _ = load(opened, mesh)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        print(f"{opened.name}: write a message, /help for what else there is, Ctrl-D to leave")
    for line in _lines(terminal):
        text = line.strip()
        if text in ("/exit", "/quit"):
            break
        if not text:
            continue
        try:
            if not conversation.command(text):
                _answer(conversation, model, params, text, args.show_thinking)
        except ValueError as error:
            say(f"error: {explain(error)[1]}")
    return 0


class Conversation:
    """What has been said, and how the next answer is made.

    Attributes:
      tok: the tokenizer, whose template says how turns are written.
      messages: the turns so far, for the chat template (which leaves out the thinking of earlier turns).
      config: settings of the next answer.
    """

    def __init__(self, tok: Any, config: Any, system: str | None = None) -> None:
        self.tok = tok
        self._start: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._flag = ""
        self._turn = 0
        self.messages = list(self._start)
        self.config = config

    def messages_with(self, text: str) -> list[dict[str, Any]]:
        """The conversation with one more user message, the soft switch added."""
        return [*self.messages, {"role": "user", "content": f"{text} {self._flag}".rstrip()}]

    def turn_config(self, messages: list[dict[str, Any]], context: int) -> Any:
        """Settings of this turn: a seed of its own, and no more tokens than the context has left."""
        seed = (self.config.seed + self._turn) % 2**32
        limit = self.config.max_new_tokens
        if limit is not None:
            prompt = self.tok.render(messages, enable_thinking=self.config.thinks, add_generation_prompt=True)
            limit = max(1, min(limit, context - len(self.tok.encode(prompt))))
        return dataclasses.replace(self.config, seed=seed, max_new_tokens=limit)

    def add_turn(self, messages: list[dict[str, Any]], thinking: str, content: str, tool_calls: list[Any]) -> None:
        """Keeps a turn, complete or stopped half-way."""
        answer: dict[str, Any] = {"role": "assistant", "content": content, "reasoning_content": thinking}
        if tool_calls:
            answer["tool_calls"] = tool_calls
        self.messages = [*messages, answer]
        self._turn += 1

    def command(self, text: str) -> bool:
        """Carries out a line that is a command; False where it is a message.

        Raises:
          ValueError: a command that does not exist, or a budget that is none.
        """
        name, _, value = text.partition(" ")
        if name == "/budget":
            self._set_budget(value.strip())
        elif not re.fullmatch(r"/[a-z_]+", text):
            return False
        elif text in ("/think", "/no_think"):
            self._set_mode(text)
        elif text == "/reset":
            self.messages, self._turn = list(self._start), 0
            say("the conversation is empty again")
        elif text == "/help":
            print(_HELP, file=sys.stderr)
        else:
            known = [entry.split()[0] for entry in COMMANDS]
            raise ValueError(
                f"a command must be one of {', '.join(known)}, got {text}: {did_you_mean(text, known) or 'see /help'}"
            )
        return True

    def _set_mode(self, flag: str) -> None:
        from qwen3_jax.checkpoints.inspect import describe_template

        self._flag = flag
        # The soft switch works inside the hard one only.
        self.config = dataclasses.replace(self.config, enable_thinking=None)
        if flag == "/think" and self.config.thinking_budget == 0:
            say("thinking stays off while the budget is 0: /budget off lifts it")
        elif not describe_template(self.tok)["enable_thinking_acts"]:
            say(f"{flag} is added to your messages, but this checkpoint's template has one mode only")
        else:
            say("thinking is on" if flag == "/think" else "thinking is off")

    def _set_budget(self, value: str) -> None:
        if value != "off" and not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"/budget must be followed by a whole number or off, got {value!r}: write /budget 256")
        budget = None if value == "off" else int(value)
        self.config = dataclasses.replace(self.config, thinking_budget=budget)
        say("no limit on thinking" if budget is None else f"at most {budget} tokens of thinking")


def _answer(conversation: Conversation, model: Any, params: Any, text: str, show_thinking: bool | None) -> None:
    """One turn, streamed.

    Raises:
      ValueError: the conversation has outgrown the context, or the budget leaves no room; nothing is kept of the turn.
    """
    from qwen3_jax.cli.answers import AnswerWriter
    from qwen3_jax.cli.common import with_spinner
    from qwen3_jax.infer import stream

    messages = conversation.messages_with(text)
    config = conversation.turn_config(messages, model.config.context_length)
    try:
        pieces = stream(model, params, conversation.tok, [messages], config)
    except ValueError as error:
        raise ValueError(f"{error}; /reset starts a new conversation") from None
    writer, result = AnswerWriter(show_thinking), None
    began = time.perf_counter()
    with _stoppable() as stop, contextlib.suppress(KeyboardInterrupt):
        for piece in with_spinner(pieces):
            writer.push(piece)
            result = piece.result
            if stop.is_set():
                break
    writer.close()
    if result is None:
        say("stopped; what was written stays in the conversation")
        conversation.add_turn(messages, writer.thinking, writer.content, writer.tool_calls)
        return
    writer.footer(result, time.perf_counter() - began)
    conversation.add_turn(messages, result.thinking, result.content, result.tool_calls)


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, between two pieces of the answer; a second one interrupts at once."""
    event = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            signal.default_int_handler(number, frame)
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(terminal: bool) -> Iterator[str]:
    """Lines of the user, until the end of the input."""
    if not terminal:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (editing and history for input)
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")
