"""A record of a file to tokens with a loss mask: text, chat, and tokens made ahead."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.compile_cache import user_cache
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.data.chat_loss_mask import answer_parts, chat_parts, encode_parts
from qwen3_jax.train.data.line_files import LeftOut, described, stopped_by
from qwen3_jax.train.data.readers import open_readers
from qwen3_jax.train.fusion import fuse_turns
from qwen3_jax.train.settings import DataConfig, SourceConfig

END_OF_DOCUMENT = "<|endoftext|>"
FIELDS = {"text": "text", "chat": "messages", "tokens": "tokens"}
_PROBE = "The quick brown fox, 12345 — 快速的狐狸 быстрая 🦊\n\n\tdef f(x): return x\r\n<think>\n</think>"


class Document(NamedTuple):
    """What the model reads: int32[n] tokens, bool[n] loss; `whole` where it may not be cut into pieces."""

    tokens: np.ndarray
    loss: np.ndarray
    whole: bool


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes documents of the records of one source.

    Text ends with <|endoftext|> where the vocabulary has it, so that the model learns where documents end.
    """

    tok: Tokenizer
    source: SourceConfig

    @property
    def field(self) -> str:
        return self.source.field or FIELDS[self.source.kind]

    def documents(self, record: Mapping[str, Any]) -> list[Document]:
        """One for a text, one for each example of a conversation (see `chat_parts`).

        Raises:
          ValueError: the field is missing or of the wrong type; malformed messages; tokens outside of the vocabulary.
        """
        content = self._content(record)
        if self.source.kind == "text":
            if not isinstance(content, str):
                raise ValueError(f"{self.field} must be text, got {type(content).__name__}: correct the record")
            ids = self.tok.encode(content)
            if (end := self.tok.token_to_id(END_OF_DOCUMENT)) is not None:
                ids.append(end)
            tokens = np.array(ids, np.int32)
            return [Document(tokens, np.ones(len(tokens), bool), False)]
        if self.source.kind == "chat":
            return [Document(*encode_parts(self.tok, parts), True) for parts in self._parts(record, content)]
        return [self._made_ahead(record, content)]

    def digest(self, record: Mapping[str, Any]) -> int:
        """64 bits of the content alone, so that the same text in two files has the same."""
        content = self._content(record)
        if isinstance(content, np.ndarray):
            raw = content.astype("<i4").tobytes()
        else:
            try:
                text = json.dumps(content, ensure_ascii=False, sort_keys=True)
            except TypeError as error:
                raise ValueError(f"{self.field} must be JSON values, got an error ({error}): correct it") from None
            raw = text.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")

    def fields(self) -> set[str]:
        """What of a record decides its tokens."""
        return {self.field, "tools", "enable_thinking", "loss_mask"}

    def key(self) -> str:
        """Changes when the tokens of a record do."""
        fusion = None if self.source.fusion is None else dataclasses.asdict(self.source.fusion)
        ours = [self.source.kind, self.field, self.source.thinking, fusion, fingerprint(self.tok)]
        return hashlib.sha256(json.dumps(ours).encode()).hexdigest()[:16]

    def _content(self, record: Mapping[str, Any]) -> Any:
        if self.field not in record:
            raise ValueError(
                f"a record of kind {self.source.kind} must have {self.field!r}, got {', '.join(record) or 'nothing'}: "
                "set data.sources.field"
            )
        return record[self.field]

    def _parts(self, record: Mapping[str, Any], messages: Any) -> list[Any]:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"{self.field} must be a list of messages, got {type(messages).__name__}: correct it")
        end, tools = self.tok.special_tokens.get("eos_token", "<|im_end|>"), record.get("tools")
        if self.source.fusion is not None:
            if "enable_thinking" in record:
                raise ValueError("enable_thinking is drawn by data.sources.fusion, got one in the record: remove it")
            return [
                answer_parts(self.tok, one.messages, end=end, tools=tools, enable_thinking=one.enable_thinking)
                for one in fuse_turns(messages, self.source.fusion, self.digest(record))
            ]
        return chat_parts(
            self.tok,
            messages,
            end=end,
            tools=tools,
            enable_thinking=record.get("enable_thinking", True),
            thinking=self.source.thinking,
        )

    def _made_ahead(self, record: Mapping[str, Any], content: Any) -> Document:
        mask = record.get("loss_mask")
        try:
            tokens = np.asarray(content, np.int32)
            loss = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"tokens must be a list of numbers, got an error ({error}): correct the record") from None
        if tokens.ndim != 1 or loss.shape != tokens.shape:
            raise ValueError(f"tokens and loss_mask must be two lists of one length, got {tokens.shape} {loss.shape}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.tok.vocab_size:
            raise ValueError(
                f"tokens must be of the vocabulary of {self.tok.vocab_size}, got {int(tokens.min())} to "
                f"{int(tokens.max())}: they were made with another tokenizer"
            )
        return Document(tokens, loss, mask is not None)


def fingerprint(tok: Tokenizer) -> str:
    """A digest of what a tokenizer does: its size, its named tokens and templates, and how it cuts a probe of text."""
    ours = [tok.vocab_size, sorted(tok.special_tokens.items()), sorted(tok.chat_templates.items()), tok.encode(_PROBE)]
    return hashlib.sha256(json.dumps(ours).encode()).hexdigest()[:16]


def cut(document: Document, length: int) -> list[Document]:
    """Pieces of at most `length` tokens; what may not be cut comes as it is, however long.

    A piece begins with the last token of the one before, so that each token but the document's first is learnt once.

    In:  a b c d e, length 3      Out: a b c, c d e
    """
    tokens, loss, whole = document
    if whole or len(tokens) <= length or length < 2:
        return [document]
    starts = range(0, len(tokens) - 1, length - 1)
    return [Document(tokens[at : at + length], loss[at : at + length], whole) for at in starts]


def sample_texts(data: DataConfig, count: int, seed: int) -> Iterator[str]:
    """Texts of `count` examples drawn without repetition from all sources alike (of all, where they are fewer).

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: the sources are tokens, or a record is malformed and not to be left out.
    """
    files = []
    for source in data.sources:
        if source.kind == "tokens":
            raise ValueError(
                f"tokenizer.path must name the tokenizer that {source.path} was made with, got nothing: set it"
            )
        files += [(reader, source.field or FIELDS[source.kind]) for reader in open_readers(source, cache_of(data))]
    starts = np.cumsum([0, *(len(reader) for reader, _ in files)])
    total = int(starts[-1])
    rng, left_out = np.random.default_rng((seed, 4)), LeftOut()
    for index in np.sort(rng.choice(total, min(count, total), replace=False)).tolist():
        file = int(np.searchsorted(starts, index, side="right")) - 1
        reader, field = files[file]
        try:
            texts = _texts(reader[index - int(starts[file])], field)
        except ValueError as error:
            text = described(reader.name, index - int(starts[file]), error)
            if data.on_bad_record == "stop":
                raise stopped_by(text) from None
            left_out.note(index, text)
            continue
        yield from texts


def cache_of(data: DataConfig) -> Path:
    """Where what is counted once about files is kept."""
    return Path(data.cache).expanduser() if data.cache else user_cache() / "data"


def _texts(record: Mapping[str, Any], field: str) -> list[str]:
    """What is text in a record."""
    if field not in record:
        raise ValueError(f"a record must have {field!r}, got {', '.join(record) or 'nothing'}: set data.sources.field")
    content = record[field]
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not all(isinstance(message, Mapping) for message in content):
        raise ValueError(
            f"{field} must be text or a list of messages, got {type(content).__name__}: correct the record"
        )
    keys = ("role", "reasoning_content", "content")
    return [message[key] for message in content for key in keys if isinstance(message.get(key), str)]
