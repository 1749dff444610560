"""The two libraries that turn text into ids: `tokenizers` for tokenizer.json, `sentencepiece` for .model files."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from qwen3_jax.text.messages import one_line
from qwen3_jax.text.streaming import (
    WORD_MARK,
    HeldStream,
    PieceStream,
    TextStream,
    TokenText,
    Utf8Stream,
    byte_level_bytes,
)


class AddedToken(NamedTuple):
    """A token beside the vocabulary: matched whole in text, before anything else is."""

    id: int
    special: bool  # left out of decoded text on request
    rules: bool = False  # matched with lstrip, rstrip or single_word; only tokenizer.json itself can say so


class TokenizersBackend:
    """tokenizer.json, through Hugging Face's `tokenizers`.

    Attributes:
      vocab_size: one more than the largest id.
      named_tokens: the named tokens that the vocabulary itself declares ("eos_token": "</s>").
    """

    def __init__(self, data: bytes, added: Mapping[str, AddedToken]) -> None:
        """Reads the file's bytes; `added` are tokens that must exist, taken in where the file lacks them.

        Raises:
          ValueError: not a tokenizer.json, or an added token that has another id there.
        """
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:
            raise ValueError(f"must be a tokenizer.json, got something else ({one_line(error)})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        for text, token in sorted(added.items(), key=lambda item: item[1].id):
            if self._tokenizer.token_to_id(text) is None:
                _refuse_rules(text, token)
                self._tokenizer.add_tokens([tokenizers.AddedToken(text, special=token.special, normalized=False)])
            if (found := self._tokenizer.token_to_id(text)) != token.id:
                raise ValueError(f"must give the added token {text!r} the id {token.id}, got {found}")
        known = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size = max([_model_size(self._tokenizer), *(i + 1 for i in known)])
        self.named_tokens: Mapping[str, str] = {}
        self._special = frozenset(i for i, token in known.items() if token.special)
        self._decoder = _decoder_kind(self._tokenizer.decoder)
        self._token_bytes = functools.cache(self._read_bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added. Raises ValueError for text that is not Unicode (lone surrogates)."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(_NOT_UNICODE) from error

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of `ids`; an id without a token contributes nothing."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """A stream whose pieces join to `decode` of all ids."""
        hidden: frozenset[int] = self._special if skip_special_tokens else frozenset()
        if self._decoder == "bytes":
            return Utf8Stream(lambda token: b"" if token in hidden else self._token_bytes(token))
        if self._decoder == "other":
            return HeldStream(lambda ids: self.decode(ids, skip_special_tokens))
        return PieceStream(
            lambda token: None if token in hidden else self._piece(token),
            leading="space" if self._decoder == "pieces without first space" else "keep",
            bytes_together=True,
        )

    def _read_bytes(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else byte_level_bytes(text)

    def _piece(self, token: int) -> TokenText | None:
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return None
        text = text.replace(WORD_MARK, " ")
        byte = _BYTE_PIECE.fullmatch(text)
        return TokenText(text, int(byte[1], 16)) if byte else TokenText(text)


class SentencePieceBackend:
    """A *.model file, through `sentencepiece`; the same interface as `TokenizersBackend`.

    The library knows nothing of tokens beside its model and never shows its control tokens. As in Hugging Face's slow
    tokenizers, added and control tokens are found in text first and the text between goes to the library; only the
    beginning of the text takes the model's dummy space, so that decoding gives the text back.
    """

    def __init__(self, data: bytes, added: Mapping[str, AddedToken]) -> None:
        """Reads the model's bytes; `added` are the tokens beside it.

        Raises:
          ValueError: not a sentencepiece model, or an added token that has another id there.
        """
        import sentencepiece

        try:
            self._start = sentencepiece.SentencePieceProcessor(model_proto=data)
            self._middle = sentencepiece.SentencePieceProcessor(model_proto=data + _WITHOUT_DUMMY_SPACE)
        except Exception as error:
            raise ValueError(f"must be a sentencepiece model, got something else ({one_line(error)})") from error
        size = self._start.vocab_size()
        control = {self._start.id_to_piece(i): AddedToken(i, True) for i in range(size) if self._start.is_control(i)}
        for text, token in added.items():
            _refuse_rules(text, token)
            inside = token.id < size
            if (self._start.id_to_piece(token.id) != text) if inside else text in control:
                found = self._start.id_to_piece(token.id) if inside else control[text].id
                raise ValueError(f"must give the added token {text!r} the id {token.id}, got {found!r} in its place")
        self._added = {**control, **added}
        self._added_text = {token.id: (text, token.special) for text, token in self._added.items()}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._added, key=len, reverse=True))) or r"(?!)")
        self._model_size = size
        self.vocab_size = max([size, *(token.id + 1 for token in self._added.values())])
        named = {name: getattr(self._start, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
        self.named_tokens: Mapping[str, str] = {
            f"{name}_token": self._start.id_to_piece(i) for name, i in named.items() if i >= 0
        }
        self._leading = _leading_rule(self._start)
        self._unknown = self._start.decode([self._start.unk_id()])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        done = 0
        try:
            for match in self._pattern.finditer(text):
                ids += self._plain(text[done : match.start()], at_start=done == 0)
                ids.append(self._added[match[0]].id)
                done = match.end()
            return ids + self._plain(text[done:], at_start=done == 0)
        except RuntimeError as error:
            raise ValueError(_NOT_UNICODE) from error

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        stream = self.text_stream(skip_special_tokens)
        return "".join([stream.push(token) for token in ids]) + stream.finish()

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token].id
        found = self._start.piece_to_id(token)
        return found if self._start.id_to_piece(found) == token else None

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        return PieceStream(
            lambda token: self._piece(token, skip_special_tokens), leading=self._leading, bytes_together=False
        )

    def _plain(self, text: str, at_start: bool) -> list[int]:
        return (self._start if at_start else self._middle).encode(text) if text else []

    def _piece(self, token: int, skip_special_tokens: bool) -> TokenText:
        if token in self._added_text:
            text, special = self._added_text[token]
            return TokenText("" if special and skip_special_tokens else text)
        if token >= self._model_size:
            return TokenText("")
        text = self._start.id_to_piece(token)
        if self._start.is_byte(token):
            return TokenText(text, int(text[1:-1], 16))
        if self._start.is_unknown(token):
            return TokenText(self._unknown)
        return TokenText(text.replace(WORD_MARK, " "), opens_word=text.startswith(WORD_MARK))


Backend = TokenizersBackend | SentencePieceBackend

_NOT_UNICODE = "text must be valid Unicode, got a lone surrogate (half of a UTF-16 pair): decode the input properly"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Appended to a serialized model, this sets normalizer_spec.add_dummy_prefix (field 3 of field 3) to false: repeated
# messages of a protocol buffer are merged and the last value counts.
_WITHOUT_DUMMY_SPACE = b"\x1a\x02\x18\x00"


def _model_size(tokenizer: Any) -> int:
    """One more than the largest id of the vocabulary without added tokens, which may have holes."""
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if None in map(tokenizer.id_to_token, range(size)):
        return max(tokenizer.get_vocab(with_added_tokens=False).values()) + 1
    return size


def _leading_rule(model: Any) -> Literal["keep", "first", "every"]:
    """Which leading spaces the model's own decoder drops, found by showing it some."""
    texts = [model.id_to_piece(i) for i in range(model.vocab_size()) if not (model.is_control(i) or model.is_byte(i))]
    words = sorted((text for text in texts if text.strip(WORD_MARK)), key=lambda text: text.startswith(WORD_MARK))
    if not words:
        return "keep"
    shown = [WORD_MARK, WORD_MARK, words[-1]] if WORD_MARK in texts else [words[-1]]
    written, decoded = "".join(shown).replace(WORD_MARK, " "), model.decode_pieces(shown)
    dropped = len(written) - len(decoded)
    return "keep" if dropped == 0 else "first" if dropped == 1 else "every"


def _decoder_kind(decoder: Any) -> Literal["bytes", "pieces", "pieces without first space", "other"]:
    """Which of the decoders that `streaming` knows the decoder section of a tokenizer.json is."""
    settings = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = settings.get("decoders", [settings])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes"
    space = {"type": "Replace", "pattern": {"String": WORD_MARK}, "content": " "}
    if steps[:1] == [space] and kinds[1:3] == ["ByteFallback", "Fuse"]:
        if steps[3:] == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return "pieces without first space"
        if not steps[3:]:
            return "pieces"
    return "other"


def _refuse_rules(text: str, token: AddedToken) -> None:
    if token.rules:
        raise ValueError(
            f"must hold {text!r} itself, got it only as an added token with lstrip, rstrip or single_word, "
            "which is not supported"
        )
