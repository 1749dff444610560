"""Stop strings of one row, found in its text while it is being made.

A stop string may arrive in pieces, so text that could be its beginning is held back until the next piece decides:

    StopMatcher(("###",)).push("a#")  -> ("a", False)     "#" is held back
                         .push("b##") -> ("#b", False)    "##" is held back
                         .push("#c")  -> ("", True)       the stop string and what follows it are dropped
"""


class StopMatcher:
    """Passes text on up to the first stop string.

    The stop string that is complete first ends the text; of several that end at the same character, the longest does.
    What is passed on does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        assert all(stop), "an empty stop string is refused by GenerationConfig"
        self._stop = stop
        self._reach = max(map(len, stop), default=1) - 1  # most characters that can be an unfinished stop string
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
        hold = self._hold_from(text)
        self._held = text[hold:]
        return text[:hold], False

    def flush(self) -> str:
        """The text held back, when no more comes; nothing after a stop string."""
        held, self._held = self._held, ""
        return held

    def _hold_from(self, text: str) -> int:
        """Where the longest end of `text` begins that is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._reach), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)
