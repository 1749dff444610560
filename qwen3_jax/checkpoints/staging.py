"""Files written beside their target and moved there when all are complete: a failure leaves what was there."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qwen3_jax.checkpoints.safetensors import INDEX

_WEIGHTS = re.compile(rf"model(-\d+-of-\d+)?\.safetensors|{re.escape(INDEX)}")
_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|chat_template\.jinja|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.json|merges\.txt|additional_chat_templates|.*\.model"
)


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A directory to write a checkpoint into; its files replace the target's when the block ends without an error.

    Weights (and, when new ones come, tokenizer files) of the old checkpoint are removed, other files stay. When moving
    fails half-way, the old files are put back.

    Raises:
      ValueError: the target is a file.
    """
    directory = directory.expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"a checkpoint is saved into a directory, got the file {directory}: choose another path")
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=parent))
    try:
        new = stage / "new"
        new.mkdir()
        yield new
        if directory.is_dir():
            _replace(directory, new, stage / "old")
        else:
            os.rename(new, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(directory: Path, new: Path, old: Path) -> None:
    old.mkdir()
    names = sorted(path.name for path in new.iterdir())
    # A part of the old checkpoint that the new one has too goes whole: no stale shard, no stale template.
    replaced = [part for part in (_WEIGHTS, _TOKENIZER) if any(map(part.fullmatch, names))]
    outgoing = [
        path.name
        for path in directory.iterdir()
        if path.name in names or any(part.fullmatch(path.name) for part in replaced)
    ]
    placed: list[str] = []
    try:
        for name in outgoing:
            os.replace(directory / name, old / name)
        for name in names:
            os.replace(new / name, directory / name)
            placed.append(name)
    except BaseException:
        for name in placed:
            os.replace(directory / name, new / name)
        for path in old.iterdir():
            os.replace(path, directory / path.name)
        raise
