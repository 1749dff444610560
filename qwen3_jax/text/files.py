"""The files of a tokenizer: found, read once, kept byte for byte, written back atomically."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.files import replacing

JSON_MODEL = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_DIRECTORY = "additional_chat_templates"
# Hugging Face's names. The last two repeat what tokenizer.json holds; they are carried for programs that read them.
_COMPANIONS = (CONFIG, TEMPLATE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
_SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Contents of every file of one tokenizer.

    Attributes:
      source: where they were read, for messages.
      main: the name of the vocabulary file in `contents`: `tokenizers` reads tokenizer.json, `sentencepiece` others.
      contents: path relative to the checkpoint directory -> bytes.
      generation: generation_config.json, or {} (read for its end tokens; it belongs to the model and is not written).
    """

    source: Path
    main: str
    contents: Mapping[str, bytes] = dataclasses.field(repr=False)
    generation: Mapping[str, Any]

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, {} where the file is absent. Raises ValueError if it is not a JSON object."""
        if name not in self.contents:
            return {}
        return _json_object(self.contents[name], f"{name} of {self.source}")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes every file into `directory` (made if missing), each one whole or not at all.

        Raises:
          ValueError: `directory` is a file, or holds another tokenizer's file (it would be read with these).
        """
        target = Path(directory)
        if target.exists() and not target.is_dir():
            raise ValueError(f"a tokenizer is saved into a directory, got the file {target}: name a directory")
        strangers = sorted(set(_present(target)) - set(self.contents))
        if strangers:
            raise ValueError(
                f"{target} holds {', '.join(strangers)} of another tokenizer, which would be read together with this "
                "one: remove it, or save elsewhere"
            )
        for name, data in self.contents.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(data)


def read_tokenizer_files(path: str | os.PathLike[str]) -> TokenizerFiles:
    """Reads the tokenizer of a checkpoint directory, or the one whose vocabulary file is named.

    In a directory tokenizer.json is preferred to a *.model file. Beside a named vocabulary file, the directory's
    configuration and templates are read as well.

    Raises:
      FileNotFoundError: nothing there, or no tokenizer in the directory.
      ValueError: a file of another kind, several *.model files, or a configuration that is not JSON.
    """
    named = Path(path)
    if named.is_dir():
        directory, main, vocabulary = named, *_find_vocabulary(named)
    elif named.is_file():
        directory, vocabulary = named.parent, named
        if named.suffix not in (".json", ".model"):
            raise ValueError(f"a tokenizer file ends in .json or .model, got {named}: name the file or its directory")
        main = JSON_MODEL if named.suffix == ".json" else named.name
    else:
        raise FileNotFoundError(
            f"no tokenizer at {named}: give a checkpoint directory, a tokenizer.json or a *.model file"
        )

    companions = _present(directory)
    if named.is_file():  # a vocabulary that was not asked for stays out
        companions = [name for name in companions if name != JSON_MODEL and not name.endswith(".model")]
    contents = {name: (directory / name).read_bytes() for name in companions} | {main: vocabulary.read_bytes()}
    generation = directory / "generation_config.json"
    return TokenizerFiles(
        source=named,
        main=main,
        contents=contents,
        generation=_json_object(generation.read_bytes(), str(generation)) if generation.is_file() else {},
    )


def read_templates(files: TokenizerFiles) -> dict[str, str]:
    """The chat templates by name, "default" being the ordinary one; {} where there is none.

    As in transformers: template files, where there is any, replace what tokenizer_config.json says, and that is a
    string or a list of {"name", "template"}.

    Raises:
      ValueError: tokenizer_config.json holds something else there.
    """
    templates = {}
    for name in sorted(files.contents):
        if name == TEMPLATE:
            templates["default"] = _text(files, name)
        elif name.startswith(TEMPLATE_DIRECTORY + "/"):
            templates[Path(name).stem] = _text(files, name)
    if templates:
        return templates

    written = files.json(CONFIG).get("chat_template")
    if written is None:
        return {}
    if isinstance(written, str):
        return {"default": written}
    entries = written if isinstance(written, list) else [written]
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise ValueError(
                f"chat_template in {CONFIG} of {files.source} must be a string or a list of objects with name and "
                f"template, got {type(entry).__name__}: correct the file"
            )
        templates[entry["name"]] = entry["template"]
    return templates


def _present(directory: Path) -> list[str]:
    """The tokenizer files that a directory holds, by relative name."""
    names = [name for name in (JSON_MODEL, *_COMPANIONS) if (directory / name).is_file()]
    names += [path.name for path in sorted(directory.glob("*.model"))]
    return names + [
        f"{TEMPLATE_DIRECTORY}/{path.name}" for path in sorted(directory.glob(f"{TEMPLATE_DIRECTORY}/*.jinja"))
    ]


def _find_vocabulary(directory: Path) -> tuple[str, Path]:
    """The name and path of a directory's vocabulary file."""
    if (directory / JSON_MODEL).is_file():
        return JSON_MODEL, directory / JSON_MODEL
    models = {path.name: path for path in sorted(directory.glob("*.model"))}
    for name in _SENTENCEPIECE_NAMES:
        if name in models:
            return name, models[name]
    if len(models) == 1:
        return models.popitem()
    if models:
        raise ValueError(
            f"one sentencepiece model is needed, {directory} holds {', '.join(models)}: name one of the files"
        )
    raise FileNotFoundError(f"no tokenizer in {directory}: it needs {JSON_MODEL}, or a *.model file of sentencepiece")


def _text(files: TokenizerFiles, name: str) -> str:
    try:
        return files.contents[name].decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} of {files.source} must be UTF-8, got other bytes at {error.start}: correct the file"
        ) from error


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{where} must be JSON, got something else ({error}): correct the file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}: correct the file")
    return value
