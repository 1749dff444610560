"""What the processes of one job do together. With one process all of it is plain local work.

Everything here that talks is a collective: every process calls it, in the same order.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def is_shared(tree: Any) -> bool:
    """Whether some array of the tree lies on devices of other processes too."""
    return any(not getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree))


def gather(value: Any) -> list[Any]:
    """What every process passed (plain JSON values), in the order of the processes.

    In: 3 on process 0 and {"a": 1} on process 1      Out: [3, {"a": 1}] on both
    """
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: own.size] = own
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def first_does(action: Callable[[], Any]) -> Any:
    """Runs `action` on process 0 and gives its result (plain JSON values) to all, when it is done.

    Raises:
      ValueError, OSError: what it raised on process 0, on every process.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    if is_first():
        try:
            result = action()
        except Exception as failure:
            error = failure
    known = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, OSError, FloatingPointError)}
    kinds = [] if error is None else [kind.__name__ for kind in type(error).__mro__]
    said = next((kind for kind in kinds if kind in known), "")  # a kind of ours is told as the one that it is made of
    told = None if error is None else [said, str(error), getattr(error, "errno", None)]
    outcome = gather({"result": result, "error": told})[0]
    if error is not None:
        raise error
    if outcome["error"] is not None:
        kind, text, number = outcome["error"]
        if number is not None:  # by which a full disk is known
            raise OSError(number, f"{text} (on process 0)")
        raise known.get(kind, RuntimeError)(f"{text} (on process 0)")
    return outcome["result"]
