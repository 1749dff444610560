"""Token ids to text while they arrive: never half a character, and the pieces join to exactly what `decode` gives.

Decoding at once and piece by piece differ in three places, and each stream below holds text back only there:
  * a character may be spread over several tokens (byte-level BPE, byte-fallback pieces);
  * invalid bytes become U+FFFD, one for each maximal invalid part or for each byte, depending on the tokenizer;
  * sentencepiece drops the space that marks the first word, and only that one.

Every stream does work proportional to what it is given, whatever came before.
"""

import codecs
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol, SupportsIndex, runtime_checkable

REPLACEMENT = "\ufffd"
WORD_MARK = "\u2581"  # what sentencepiece writes for a space


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level BPE vocabulary: 256 characters to 256 bytes.

    Printable Latin-1 stands for itself; the other bytes, in order, take the code points from 256 on (GPT-2's table).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(shifted)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that one token of a byte-level vocabulary stands for.

    A token with any character outside the alphabet (an added token with a space in it) stands for its own UTF-8.
    """
    alphabet = byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


class Utf8Stream:
    """Byte-level BPE: tokens are bytes, the text is their UTF-8, each maximal invalid part one U+FFFD.

    Attributes:
      token_bytes: the bytes of a token id.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self.token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Takes the next token id and returns the text that is now settled (possibly none)."""
        return self._decoder.decode(self.token_bytes(token))

    def finish(self) -> str:
        """Returns the text still held; the stream is used up."""
        return self._decoder.decode(b"", final=True)


class TokenText(NamedTuple):
    """What one token of a piece vocabulary contributes.

    Attributes:
      text: its text in the middle of a sentence; unused when `byte` is set.
      byte: the raw byte of a byte-fallback piece, else None.
      opens_word: the text begins with a space that came from a word mark (droppable at the beginning).
    """

    text: str
    byte: int | None = None
    opens_word: bool = False


class PieceStream:
    """Vocabularies of pieces with byte fallback (sentencepiece, and its form in tokenizer.json).

    Attributes:
      piece: the piece of a token id, None for a token that is left out before decoding (it ends no run of bytes).
      leading: which leading space is dropped: "keep" none; "first" the word mark of the first piece; "every" one word
        mark of each piece until there is text (sentencepiece models that remove extra whitespace); "space" one space
        of the text, wherever it came from (tokenizer.json's Strip).
      bytes_together: a run of byte pieces is one UTF-8 string or, if any part is invalid, all U+FFFD (tokenizer.json's
        ByteFallback); else the valid characters in it stand, and each byte left over is one U+FFFD (sentencepiece).
    """

    def __init__(
        self,
        piece: Callable[[int], TokenText | None],
        leading: Literal["keep", "first", "every", "space"],
        bytes_together: bool,
    ) -> None:
        self.piece = piece
        self.leading = leading
        self.bytes_together = bytes_together
        self._at_start = leading != "keep"
        self._run = bytearray()

    def push(self, token: int) -> str:
        found = self.piece(token)
        if found is None:
            return ""
        text, byte, opens_word = found
        if byte is not None:
            self._run.append(byte)
            return self._start("" if self.bytes_together else self._take_characters())
        before = self._start(self._close_run())
        if self._at_start and opens_word and self.leading in ("first", "every"):
            text = text[1:]
            self._at_start = self.leading == "every"
        return before + self._start(text)

    def finish(self) -> str:
        return self._start(self._close_run())

    def _start(self, text: str) -> str:
        """Accounts for `text` being emitted: the beginning is over once there is any."""
        if self._at_start and text:
            self._at_start = False
            if self.leading == "space":
                return text.removeprefix(" ")
        return text

    def _take_characters(self) -> str:
        """Removes the settled characters from the open run of bytes; an unfinished one stays."""
        settled = []
        while self._run and len(self._run) >= (length := _utf8_length(self._run[0])):
            try:
                settled.append(self._run[:length].decode())
                del self._run[:length]
            except UnicodeDecodeError:
                settled.append(REPLACEMENT)
                del self._run[0]
        return "".join(settled)

    def _close_run(self) -> str:
        """Ends the open run of bytes: whatever is unfinished in it is invalid."""
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            if self.bytes_together:
                return REPLACEMENT * len(run)
        self._run = run
        settled = []
        while self._run:
            settled.append(self._take_characters())
            if self._run:
                settled.append(REPLACEMENT)
                del self._run[0]
        return "".join(settled)


def _utf8_length(first: int) -> int:
    """The number of bytes of the character that begins with `first`; 1 where no character begins so."""
    if first < 0xC0:
        return 1
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4 if first < 0xF8 else 1


class HeldStream:
    """Any other decoder of tokenizer.json: its rules may reach back, so all text is held until the end."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []

    def push(self, token: int) -> str:
        self._tokens.append(token)
        return ""

    def finish(self) -> str:
        return self._decode(self._tokens)


TextStream = Utf8Stream | PieceStream | HeldStream


@runtime_checkable
class Streamable(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def text_stream(self, skip_special_tokens: bool = False) -> TextStream: ...


class IncrementalDetokenizer:
    """Text of one row of generated tokens, as it is made.

    The pieces returned by `push` and the last `flush` join to `tok.decode(all_ids, skip_special_tokens)` exactly.

    Of three tokens with the bytes b"\\xf0\\x9f", b"\\x98" and b"\\x80!":
    In:  push([a])  push([b, c])   flush()
    Out: ""         "\U0001f600!"  ""
    """

    def __init__(self, tok: Streamable, skip_special_tokens: bool = False) -> None:
        self._open = functools.partial(tok.text_stream, skip_special_tokens)
        self._stream = self._open()

    def push(self, ids: SupportsIndex | Iterable[SupportsIndex]) -> str:
        """Takes the next token ids (one, or any number in order) and returns the text that is now settled."""
        tokens = ids.tolist() if hasattr(ids, "tolist") else ids  # an array would be read element by element
        tokens = tokens if isinstance(tokens, Iterable) else [tokens]
        return "".join([self._stream.push(operator.index(token)) for token in tokens])

    def flush(self) -> str:
        """Ends the text: returns what was held back (half a character as U+FFFD). The next push begins a new text."""
        rest, self._stream = self._stream.finish(), self._open()
        return rest


def partial_suffix(text: str, wanted: Iterable[str]) -> int:
    """Where the longest end of `text` begins that is the beginning of a wanted string, but not all of it."""
    reach = max(map(len, wanted := list(wanted)), default=1) - 1
    for start in range(max(0, len(text) - reach), len(text)):
        if any(string.startswith(text[start:]) for string in wanted):
            return start
    return len(text)
