"""A checkpoint's tokenizer: text to ids and back, and its chat template."""

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from qwen3_jax.text import template as chat
from qwen3_jax.text.backends import AddedToken, Backend, SentencePieceBackend, TokenizersBackend
from qwen3_jax.text.files import CONFIG, JSON_MODEL, TEMPLATE, TokenizerFiles, read_templates, read_tokenizer_files
from qwen3_jax.text.streaming import TextStream

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """What `load_tokenizer` returns.

    Attributes:
      vocab_size: one more than the largest id that has a token (151,669 for Qwen3; the embedding has more rows).
      eos_token_id: the token that ends an answer, or None.
      eos_token_ids: every token that ends one: the tokenizer's own, then those of generation_config.json.
      pad_token_id: the padding token, or None.
      think_id: the id of <think>, or None where that is not one token.
      end_think_id: the id of </think>, likewise.
      special_tokens: the named tokens ("eos_token": "<|im_end|>"), which chat templates may use.
      chat_templates: every template by name; the ordinary one is "default".
    """

    def __init__(self, backend: Backend, files: TokenizerFiles) -> None:
        self._backend = backend
        self._files = files
        self.vocab_size = backend.vocab_size
        self.chat_templates = read_templates(files)
        self.special_tokens = _named_tokens(files, backend.named_tokens)
        self.eos_token_ids = _end_tokens(files, self._named_id("eos_token"))
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self.pad_token_id = self._named_id("pad_token")
        self.think_id = backend.token_to_id("<think>")
        self.end_think_id = backend.token_to_id("</think>")

    def __repr__(self) -> str:
        return f"Tokenizer({str(self._files.source)!r}, vocab_size={self.vocab_size})"

    @property
    def chat_template(self) -> str | None:
        """The ordinary chat template, or None."""
        return self.chat_templates.get("default")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; nothing is added, and tokens such as <|im_end|> are found in it.

        Raises:
          ValueError: `text` is not a string, or holds lone surrogates.
        """
        if not isinstance(text, str):
            raise ValueError(f"encode takes a string, got {type(text).__name__}: encode one text at a time")
        return self._backend.encode(text)

    def decode(self, ids: Iterable[Any], skip_special_tokens: bool = False) -> str:
        """The text of `ids` (a sequence or a one-dimensional array of integers), U+FFFD for bytes that are not UTF-8.

        An id that has no token (a padding row of the embedding) contributes nothing, as in `transformers`.

        Raises:
          ValueError: something that is not a non-negative integer.
        """
        return self._backend.decode(_checked_ids(ids), skip_special_tokens)

    def text_stream(self, skip_special_tokens: bool = False) -> TextStream:
        """Decodes token by token; `streaming.IncrementalDetokenizer` is the comfortable form."""
        return self._backend.text_stream(skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token by its name in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def render(
        self,
        messages: object,
        tools: object = None,
        enable_thinking: object = True,
        add_generation_prompt: object = True,
    ) -> str:
        """The prompt that the checkpoint's own chat template makes of a conversation (see `template.render`).

        Raises:
          ValueError: no chat template, malformed messages or tools, or the template refuses them.
        """
        name = "tool_use" if tools is not None and "tool_use" in self.chat_templates else "default"
        if name not in self.chat_templates:
            others = f", only {', '.join(self.chat_templates)}" if self.chat_templates else ""
            raise ValueError(
                f"messages need a chat template, {self._files.source} has none{others}: add {TEMPLATE} or give raw text"
            )
        return chat.render(
            self.chat_templates[name],
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes every file of this tokenizer into `directory`, byte for byte as it was read, each one atomically.

        Raises:
          ValueError: `directory` is a file, or holds a tokenizer file that is not one of these.
        """
        self._files.save(directory)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        if token is None:
            return None
        found = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"{name} of {self._files.source} must be in the vocabulary, got {token!r}: correct {CONFIG}"
            )
        return found


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tokenizer from a checkpoint directory or a vocabulary file (tokenizer.json, or *.model of sentencepiece).

    Raises:
      FileNotFoundError: nothing there, or no tokenizer in the directory.
      ValueError: a file that can not be read as what it should be.
    """
    files = read_tokenizer_files(path)
    read = TokenizersBackend if files.main == JSON_MODEL else SentencePieceBackend
    try:
        backend: Backend = read(files.contents[files.main], _added_tokens(files))
    except ValueError as error:
        raise ValueError(f"{files.main} of {files.source} {error}: correct or download it again") from error
    return Tokenizer(backend, files)


def _added_tokens(files: TokenizerFiles) -> dict[str, AddedToken]:
    """The tokens that tokenizer_config.json (or the older added_tokens.json) declares beside the vocabulary."""
    declared: Any = files.json(CONFIG).get("added_tokens_decoder")
    where = f"added_tokens_decoder in {CONFIG}"
    if not declared:
        where = "added_tokens.json"
        declared = {i: {"content": text} for text, i in files.json(where).items()}
    wrong = ValueError(
        f"{where} of {files.source} must map token ids to tokens, got {str(declared)[:80]}: correct the file"
    )
    found = {}
    try:
        for i, entry in declared.items():
            rules = any(entry.get(rule) for rule in ("lstrip", "rstrip", "single_word"))
            found[entry["content"]] = AddedToken(int(i), bool(entry.get("special")), rules)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise wrong from error
    if not all(isinstance(text, str) and text and token.id >= 0 for text, token in found.items()):
        raise wrong
    return found


def _named_tokens(files: TokenizerFiles, own: Mapping[str, str]) -> dict[str, str]:
    """Each named token, from tokenizer_config.json or else special_tokens_map.json or else the vocabulary."""
    stated = {**own, **files.json("special_tokens_map.json"), **files.json(CONFIG)}
    found = {}
    for name in _NAMED_TOKENS:
        token = stated.get(name)
        if isinstance(token, Mapping):  # the long form, with its matching rules
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
        elif token is not None:
            raise ValueError(f"{name} of {files.source} must be a string or null, got {token!r}: correct {CONFIG}")
    return found


def _end_tokens(files: TokenizerFiles, own: int | None) -> tuple[int, ...]:
    """The tokenizer's end token, then those of generation_config.json, each once."""
    written = files.generation.get("eos_token_id")
    others = written if isinstance(written, list) else [] if written is None else [written]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in others):
        raise ValueError(
            f"eos_token_id in generation_config.json of {files.source} must be an id or a list of ids, "
            f"got {written!r}: correct the file"
        )
    return tuple(dict.fromkeys(([] if own is None else [own]) + others))


def _checked_ids(ids: Iterable[Any]) -> list[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else ids  # an array would be read element by element
    try:
        checked = [operator.index(value) for value in values]
    except TypeError as error:
        raise ValueError(f"decode takes a sequence of token ids, got {str(ids)[:80]}: give integers") from error
    wrong = next((value for value in checked if not 0 <= value < 2**32), None)
    if wrong is not None:
        raise ValueError(f"token ids are 0 or more and below 2**32, got {wrong}: give ids of this tokenizer")
    return checked
