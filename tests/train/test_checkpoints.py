"""Saving leaves nothing behind in memory, and what tensorstore is asked is answered as before."""

import contextlib
import gc
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import tensorstore as ts

from qwen3_jax.train.checkpoints import Checkpoints, mend_tensorstore
from qwen3_jax.train.state import TrainState


@pytest.mark.parametrize(
    "json",
    [
        {"driver": "file", "path": "/a b/'\"é你/step/"},
        {"driver": "file", "path": "/a/", "file_io_locking": {"mode": "non_atomic"}},
        {"driver": "file", "path": "/a/", "file_io_sync": False},
        {"driver": "memory", "path": "a/b"},
        {"driver": "zip", "base": {"driver": "file", "path": "/a.zip"}, "path": "b"},
        {"driver": "ocdbt", "base": {"driver": "file", "path": "/a/"}, "config": {"compression": None}},
        {"driver": "gcs", "bucket": "bucket", "path": "a/"},
    ],
    ids=str,
)
def test_a_spec_says_what_it_was_made_of(json: Any) -> None:
    mend_tensorstore()
    assert ts.KvStore.Spec(json).to_json() == json


def test_defaults_are_still_told() -> None:
    mend_tensorstore()
    json = ts.KvStore.Spec({"driver": "file", "path": "/a/"}).to_json(include_defaults=True)
    assert {"driver", "path", "context", "file_io_locking"} <= set(json)


def test_a_save_keeps_no_objects(tmp_path: Path) -> None:
    """Blocks of Python's allocator: of references that nobody gives back there are 10 an array and save without."""
    params = {f"layer {i}": jnp.full((4,), float(i)) for i in range(48)}
    blocks = []
    gc.collect()
    gc.freeze()  # what the tests before have left need not be gone through at each save
    with contextlib.ExitStack() as stack:
        stack.callback(gc.unfreeze)
        checkpoints = stack.enter_context(Checkpoints(tmp_path, keep=1))
        for step in range(30):
            checkpoints.save(TrainState(jnp.int32(step), params, opt_state={}), list)
            checkpoints._manager.wait_until_finished()
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert (blocks[-1] - blocks[19]) / 10 < len(params)
