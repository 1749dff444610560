"""What a run's directory says of the run: its configuration, its starts, and that one process at a time trains in it.

config.yaml        the resolved configuration of the first start; later ones must agree with it
environment.json   every start: when, by which command, with which packages, from which commit, on which devices
tokenizer/         the run's tokenizer
metrics.jsonl      one object a step
checkpoints/N      the state after step N
non_finite_P.json, non_finite_P.jsonl   steps whose loss or gradient was not finite, see train.stop
data_identity.json what the files of the data are, by contents
data.json          tokens read by label, against the target, at the end (of data from files)
model/             the finished model in Hugging Face form
"""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import yaml

from qwen3_jax.files import replace_text, write_json
from qwen3_jax.sharding.launch.processes import first_does
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.parsing import parse, to_dict

# What may differ between two starts of a run: it decides none of what is learnt. A name stands for all beneath it.
FREE = frozenset(
    "run_dir report checkpoint_every keep_checkpoints mesh evaluation".split()
    + "data.threads data.cache data.on_bad_record".split()
)
_PATH = re.compile(r"data\.sources\[\d+\]\.path")  # files are known by their contents, see train.data.identity


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
    return parse(TrainConfig, yaml.safe_load(path.read_text(encoding="utf-8")) | {"run_dir": str(run_dir)})


def claim(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.yaml, or requires the one there to be the same but for what may change between starts; then notes
    this start in environment.json. A run that never made a step (its data was not found, say) is forgotten.

    Raises:
      ValueError: it holds a run of another configuration; the keys that differ are named, with both values.
    """
    path = run_dir / "config.yaml"
    ours = to_dict(config) | {"run_dir": ""}
    earlier = stored_config(run_dir)  # parsed: a key that it was written without has its default
    differ = [] if earlier is None else _differences(to_dict(earlier) | {"run_dir": ""}, ours, config)
    if differ and begun(run_dir):
        raise ValueError(
            f"{run_dir} must be empty or hold this run, got one that differs in {'; '.join(differ)}: choose another "
            "run_dir (with init_from to go on from its model)"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if earlier is None or differ:
        for name in ("tokenizer", "base.json"):  # made for the other configuration
            _remove(run_dir / name)
        replace_text(path, yaml.safe_dump(ours, sort_keys=False, allow_unicode=True))
    note_start(run_dir / "environment.json", config)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """In: {"seed": 0}, {"seed": 1}     Out: ["seed (0 there, 1 now)"]"""
    there, now = flat(theirs), flat(ours)
    free = FREE | ({"steps"} if config.optimizer.schedule == "constant" else set())
    keys = sorted(key for key in there.keys() | now.keys() if there.get(key) != now.get(key) and not _within(key, free))
    return [f"{key} ({there.get(key)} there, {now.get(key)} now)" for key in keys]


def _within(key: str, names: Collection[str]) -> bool:
    beneath = any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in names)
    return beneath or _PATH.fullmatch(key) is not None


def begun(run_dir: Path) -> bool:
    """Whether a step was made, so that the configuration there counts."""
    metrics = run_dir / "metrics.jsonl"
    return has_checkpoint(run_dir) or (metrics.exists() and metrics.stat().st_size > 0)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is a whole checkpoint, from which the next start goes on."""
    return any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """In: {"a": {"b": 1}, "c": [{"d": 2}], "e": [3]}     Out: {"a.b": 1, "c[0].d": 2, "e": [3]}"""
    if isinstance(value, Mapping) and value:
        inner = [flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        inner = [flat(item, f"{name}[{number}]") for number, item in enumerate(value)]
    else:
        return {name: value}
    return {key: item for each in inner for key, item in each.items()}


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
        "config": {key: value for key, value in flat(to_dict(config)).items() if _within(key, FREE)},
    }
    write_json(path, [*starts, start])


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
