"""Training state on disk: orbax, atomic, with the place in the data beside the arrays.

With many processes each writes its own part of the arrays into the one directory, which all of them must see.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.step import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, so that pending writes end."""

    def __init__(self, directory: Path, keep: int) -> None:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

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
        self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, list[Any]]:
        """The newest checkpoint, in the shapes, dtypes and shardings of `like`, which gives the frozen base."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dataclasses.replace(like, frozen=None))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(self._manager.latest_step(), args=items)
        return dataclasses.replace(restored.state, frozen=like.frozen), restored.data["streams"]
