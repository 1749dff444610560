"""What a run's directory says of the run: its configuration, its starts, and that one process at a time trains in it.

config.yaml        the resolved configuration of the first start; later ones must agree with it
environment.json   every start: when, by which command, with which packages, from which commit, on which devices
tokenizer/         the run's tokenizer
metrics.jsonl      one object a step
checkpoints/N      the state after step N
data.json          tokens read by label, against the target, at the end (of data from files)
model/             the finished model in Hugging Face form
"""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import jax
import yaml

from sharding.processes import first_does
from train.config import TrainConfig, parse, to_dict

# What may differ between two starts of a run: it decides none of the run's numbers.
FREE = frozenset({"run_dir", "report", "checkpoint_every", "keep_checkpoints", "mesh"})


class Lock:
    """Holds a run's directory against a second run in it, until the block ends or the process does.

    Raises:
      ValueError: on entering, another process trains in it; raised on every process of a job.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._file: TextIO | None = None

    def __enter__(self) -> "Lock":
        first_does(self._take)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            self._file.close()

    def _take(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        file = (self._run_dir / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another"
            file.close()
            raise ValueError(
                f"{self._run_dir} must have one process training in it, got a second one beside {holder}: wait for it, "
                "or choose another run_dir"
            ) from None
        except OSError as error:  # some network file systems
            warnings.warn(f"{self._run_dir} can not be locked against a second run ({error.strerror})", stacklevel=2)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        self._file = file
        for left in self._run_dir.glob(".model.*.tmp"):  # of an export that was killed
            shutil.rmtree(left, ignore_errors=True)


def stored_config(run_dir: Path) -> TrainConfig | None:
    """The resolved configuration of the run in this directory; None where there is no run yet."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return None
    config = parse(TrainConfig, yaml.safe_load(path.read_text(encoding="utf-8")) | {"run_dir": str(run_dir)})
    assert isinstance(config, TrainConfig)
    return config


def claim(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.yaml, or requires the one there to be the same but for what may change between starts; then notes
    this start in environment.json.

    Raises:
      ValueError: it holds a run of another configuration; the keys that differ are named.
    """
    path = run_dir / "config.yaml"
    ours = to_dict(config) | {"run_dir": ""}
    if path.exists():
        theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        differ = [key for key in differ if key not in FREE]
        if differ:
            raise ValueError(
                f"{run_dir} must be empty or hold this run, got one that differs in {', '.join(differ)}: "
                "choose another run_dir"
            )
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_text(path, yaml.safe_dump(ours, sort_keys=False, allow_unicode=True))
    note_start(run_dir / "environment.json", config)


def note_start(path: Path, config: TrainConfig) -> None:
    """Appends this start to a JSON list."""
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "devices": f"{len(jax.devices())} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "config": {key: value for key, value in to_dict(config).items() if key in FREE},
    }
    replace_text(path, json.dumps([*starts, start], indent=1, ensure_ascii=False) + "\n")


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: str(item[0]).lower()))


def git_commit(directory: Path) -> dict[str, Any] | None:
    """The commit that the code is of and whether it was changed since; None where it is not in a git checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not an installed copy inside another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
