"""Arguments of the commands: argparse, with one line for a mistake, the nearest flag named, and nothing overridden."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

Number = TypeVar("Number", int, float)


class UsageError(ValueError):
    """A mistake in the command itself."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "did you mean X?", or "" when nothing known is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Flags are not abbreviated, an unknown one is refused before anything else is looked at, and one that is given twice
    is refused instead of the last one winning.
    """

    def __init__(self, command: str, description: str, epilog: str, *, json: bool = False) -> None:
        super().__init__(
            prog=f"qwen3-jax {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.register("action", None, _StoreOnce)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if json:
            self.add_argument("--json", action="store_true", help="one JSON object instead of text")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, or SystemExit(0) after --help.

        Raises:
          UsageError: a mistake, in one line.
        """
        self._refuse_unknown_flags(argv)
        if any(action.nargs == "*" for action in self._get_positional_actions()):
            return self.parse_intermixed_args(list(argv))  # flags may stand between them
        return self.parse_args(list(argv))

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): ", r"\1: ", message)
        if message.endswith("expected one argument"):
            flag = message.split(":")[0].split("/")[-1]
            message = f"{flag} must be followed by a value (write {flag}=VALUE when it begins with a dash)"
        raise UsageError(f"{message}: see {self.prog} --help")

    def _refuse_unknown_flags(self, argv: Sequence[str]) -> None:
        known = self._option_string_actions
        for before, word in zip(["", *argv], argv, strict=False):
            if word == "--":
                return
            flag = word.split("=", 1)[0]
            # What argparse takes for a value stays one: text with a space, a negative number.
            if not re.match(r"-{1,2}[A-Za-z]", word) or re.search(r"\s", flag) or flag in known:
                continue
            if before in known and known[before].nargs is None:
                self.error(f"argument {before}: expected one argument")
            remedy = did_you_mean(flag, known) or f"see {self.prog} --help"
            raise UsageError(f"a flag must be one of {self.prog}'s, got {flag}: {remedy}")


class _StoreOnce(argparse.Action):
    """Stores a value and refuses a second one."""

    def __call__(self, _: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "may be given once, got it twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def _value_of(kind: Callable[[str], Number], what: str) -> Callable[[str], Number]:
    """For `type=`; which numbers make sense is checked where they are used, also for NaN and infinities."""

    def read(text: str) -> Number:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None

    return read


whole_number, number = _value_of(int, "a whole number"), _value_of(float, "a number")
