"""Opening a model for the commands, reading the user's files, writing JSON."""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.text import Text

from qwen3_jax.checkpoints.adapters import load_adapters, merge_adapters, read_adapters
from qwen3_jax.checkpoints.files import resolve_checkpoint
from qwen3_jax.checkpoints.load import from_pretrained, parse_dtype, read_generation
from qwen3_jax.cli.arguments import UsageError
from qwen3_jax.compile_cache import enable_compile_cache
from qwen3_jax.config import ModelConfig
from qwen3_jax.infer import Piece
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.paths import pocket_path
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint of which only the small files were read, so that mistakes show before its weights are loaded.

    Attributes:
      name: what the user called it.
      model: the module; its parameters, of `dtype`, come with `load`.
      adapter: directory of adapters that are to be merged into it.
    """

    name: str
    directory: Path
    dtype: Any
    model: Qwen3
    tok: Tokenizer
    adapter: Path | None = None


def open_model(args: argparse.Namespace) -> Opened:
    """The checkpoint of `--model`, or the pocket model.

    Raises:
      FileNotFoundError, ValueError: no such checkpoint, another architecture, no tokenizer, a damaged file, or adapters
        of another model.
    """
    pocket = args.model is None
    dtype = parse_dtype(args.dtype or ("float32" if pocket else "bfloat16"))
    if args.model == "":
        raise UsageError(
            "--model must name a directory or a hub id, got an empty text: leave it out for the pocket model"
        )
    directory = pocket_path() if pocket else resolve_checkpoint(args.model)
    model = Qwen3(ModelConfig.from_file(directory / "config.json"), generation=read_generation(directory))
    tok = load_tokenizer(directory)
    name = "the embedded pocket model" if pocket else args.model
    adapter = None if args.adapter is None else resolve_checkpoint(args.adapter)
    if adapter is not None:
        read_adapters(adapter, model.config)
    return Opened(name=name, directory=directory, dtype=dtype, model=model, tok=tok, adapter=adapter)


def load(opened: Opened, mesh: MeshConfig | None = None) -> tuple[Qwen3, Params, float]:
    """The model, its parameters on the devices, and the seconds that took; also turns the compile cache on.

    Raises:
      ValueError: a mesh that does not fit the devices or the model, or none with many processes.
    """
    enable_compile_cache()
    began = time.perf_counter()
    if mesh is None and jax.process_count() > 1:
        raise UsageError(
            f"--mesh must spread the model over the {jax.device_count()} devices of {jax.process_count()} processes, "
            "got none: add e.g. --mesh tensor=-1"
        )
    with spinner(f"loading {opened.name}"):
        if mesh is None:
            model, params = from_pretrained(opened.directory, dtype=opened.dtype)
        else:
            model, params = from_pretrained(opened.directory, opened.dtype, mesh.build(), rules=mesh.table)
        if opened.adapter is not None:
            model, adapters = load_adapters(opened.adapter, model, params)
            model, params = merge_adapters(model, params, adapters, donate=True)
    return model, params, time.perf_counter() - began


@contextlib.contextmanager
def spinner(what: str) -> Iterator[None]:
    """A spinner on a terminal's stderr, nothing elsewhere."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(Text(f"{what} ...", style="dim"), refresh_per_second=4):
            yield
    else:
        yield


def with_spinner(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, with a spinner on a terminal until the first one (the prompt is read, programs are compiled)."""
    with spinner("reading the prompt"):
        first = next(pieces)
    yield first
    yield from pieces


def read_text(name: str, what: str) -> str:
    """The text of a file, "-" for stdin.

    Raises:
      FileNotFoundError, UsageError: no such file, or its bytes are not UTF-8.
    """
    path = Path(name).expanduser()
    try:
        if name == "-":
            return sys.stdin.read()
        if path.is_dir():
            raise UsageError(f"{what} must be a file, got the directory {name}: name the file in it")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} must be a file, got {name!r}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} must be UTF-8 text, {name} has other bytes at {error.start}: convert it") from None


def read_json(name: str, what: str) -> Any:
    """The JSON value in a file, "-" for stdin.

    Raises:
      FileNotFoundError, UsageError: no such file, or it is not JSON.
    """
    try:
        return json.loads(read_text(name, what))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{what} must be JSON, {name} is not ({error}): correct it") from None


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_result(args: argparse.Namespace, value: Mapping[str, Any], text: object) -> int:
    """The value as JSON where --json was given, else the text; returns the exit status of success."""
    if args.json:
        print_json(value)
    else:
        print(text)
    return 0
