"""Records that can not be read or made tokens of: they end the run, or are left out, named and counted."""

import threading
import warnings

_NAMED = 10  # records that a warning each names; more are counted only


class BadRecord(ValueError):
    """A malformed record; the message names its file, its place in it, and what is wrong."""


class LeftOut:
    """Warns of records that are left out, of each once and up to a limit; threads may share it.

    Attributes:
      named: records that a warning named.
    """

    def __init__(self) -> None:
        self.named = 0
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def note(self, index: int, text: str) -> None:
        """Of record `index`, which may have been noted before."""
        with self._lock:
            if index in self._seen or self.named > _NAMED:
                return
            self._seen.add(index)
            self.named += 1
            more = self.named > _NAMED
        if more:
            warnings.warn("more malformed records are left out, and not named any more", stacklevel=3)
        else:
            warnings.warn(f"a malformed record is left out: {text}", stacklevel=3)


def described(name: str, index: int, error: Exception) -> str:
    """What is wrong with a record of a file, which readers name themselves.

    In: "a.jsonl", 3, "text must be text"     Out: "a.jsonl:3: text must be text"
    """
    text = str(error)
    return text if text.startswith(name) else f"{name}:{index}: {text}"


def stopped_by(text: str) -> BadRecord:
    """The error where such records end the run."""
    return BadRecord(f"{text} (data.on_bad_record=skip leaves such records out)")
