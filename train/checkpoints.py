"""Training state on disk: orbax, asynchronous and atomic, with the place in the data beside the arrays.

With many processes each writes its own part of the arrays into the one directory, which all of them must see.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts

from qwen3_jax.sharding.launch.processes import first_does
from qwen3_jax.train.state import TrainState

_UNFINISHED = "*.orbax-checkpoint-tmp*"  # what a process that was killed while it saved leaves behind
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BYTES_WRITTEN = "/tensorstore/kvstore/"  # what orbax asks for at each save


class Checkpoints:
    """The checkpoints of one run; use as a context manager, so that pending writes end.

    Raises:
      OSError: the disk is full (ENOSPC), wherever that shows: in `save`, in `check` after it, or at the end. The
        newest whole checkpoint is still there.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory.absolute()
        first_does(self._clean)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        silence_full_disk()
        mend_tensorstore()  # else the process grows with each save

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            with self._full_disk_in_one_line():
                self._manager.close()
        except Exception:
            if kind is None:  # else what went wrong first is what counts
                raise
        finally:
            if kind is not None and jax.process_count() == 1:
                self._clean_up()

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, places: Callable[[], Sequence[Any]]) -> None:
        """Saves in the background; the state may be donated at once.

        Args:
          places: gives the place in each stream of the data, as JSON values; called on every process or on none.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        data = {"streams": list(places())}
        trained = dataclasses.replace(state, frozen=None)  # the base is read again from where it came
        items = ocp.args.Composite(state=ocp.args.StandardSave(trained), data=ocp.args.JsonSave(data))
        with self._full_disk_in_one_line():
            self._manager.save(step, args=items)

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did."""
        with self._full_disk_in_one_line():
            self._manager.check_for_errors()

    def restore(self, like: TrainState) -> tuple[TrainState, list[Any]]:
        """The newest checkpoint, in the shapes, dtypes and shardings of `like` (of arrays or `ShapeDtypeStruct`),
        which gives the frozen base."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dataclasses.replace(like, frozen=None))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(self._manager.latest_step(), args=items)
        return dataclasses.replace(restored.state, frozen=like.frozen), restored.data["streams"]

    def _clean(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.glob(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)

    def _clean_up(self) -> None:
        """After a failure: writes that tensorstore had under way make their directories anew, for a moment."""
        for _ in range(10):
            self._clean()
            time.sleep(0.1)

    @contextlib.contextmanager
    def _full_disk_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_full_disk(error):
                raise
            if jax.process_count() == 1:  # another may still be writing
                self._clean_up()  # gives the room back that the unfinished checkpoint took
            steps = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
            newest = f"the newest whole checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"
            text = f"No space left on device: {newest}; make room and run the same command to go on"
            raise OSError(errno.ENOSPC, text, str(self._directory)) from error


def committed(directory: Path, step: int | None = None) -> tuple[int, Path]:
    """A step that has a whole checkpoint (`step`, or the newest) and where its state lies; the run may be going on.

    Raises:
      FileNotFoundError: there is none.
      ValueError: not of this step; those that are there are named.
    """
    steps = sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []
    if not steps:
        raise FileNotFoundError(f"{directory} must hold a checkpoint, got none: train first")
    if step is not None and step not in steps:
        raise ValueError(f"--step must be one of the checkpoints {steps}, got {step}: choose one of them")
    found = steps[-1] if step is None else step
    return found, directory.absolute() / str(found) / "state"


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is behind an error; the libraries that write wrap it, some in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def silence_full_disk() -> None:
    """Keeps orbax and tensorstore, from here on, from printing tracebacks of a full disk, which is raised all the same.

    tensorstore leaves another one for every write that was under way when orbax gave up ("Event loop is closed"), and
    asyncio says at the very end, when nothing could take this back, that nobody looked at the others.
    """
    before = sys.unraisablehook

    def wanted(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not is_full_disk(error)

    def hook(left: Any) -> None:  # sys.UnraisableHookArgs
        if not (left.exc_type is RuntimeError and str(left.exc_value) == "Event loop is closed"):
            before(left)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(wanted)
    sys.unraisablehook = hook


@functools.cache
def mend_tensorstore() -> None:
    """Keeps saves from leaving memory behind, from here on.

    tensorstore (0.1.86) keeps every key and value of a JSON object it gives out: its `JsonToPyObject`
    (python/tensorstore/json_type_caster.cc) hands references that it owns to `PyDict_SetItem`, which takes its own, so
    that each is counted once too often and never freed. orbax (0.12.8) asks at every save for the JSON of the kvstore's
    spec, twice an array, and for the metrics of the drivers: together some 0.5 KiB an array.

    Those two questions are answered here without tensorstore's JSON; every other one as before. Of a spec that is a
    file's path and nothing else (not, as yet, of gs:// and s3://) the JSON is made here. Metrics of the drivers are
    empty: orbax only logs a throughput of them.
    """
    to_json, metrics = ts.KvStore.Spec.to_json, ts.experimental_collect_matching_metrics

    def spec_to_json(spec: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
        json = {"driver": "file", "path": spec.path}
        return json if not include_defaults and _is(spec, json) else to_json(spec, include_defaults)

    def other_metrics(metric_prefix: str = "", include_zero_metrics: bool = False) -> list[Any]:
        return [] if metric_prefix == _BYTES_WRITTEN else metrics(metric_prefix, include_zero_metrics)

    ts.KvStore.Spec.to_json = spec_to_json  # type: ignore[method-assign, assignment]
    ts.experimental_collect_matching_metrics = other_metrics


def _is(spec: ts.KvStore.Spec, json: Any) -> bool:
    try:
        return bool(spec == ts.KvStore.Spec(json))
    except ValueError:  # the path of another driver, which no file can have
        return False
