"""Leaving in order: SIGTERM asks the loop to save and go."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """Asks the loop to save and leave; SIGTERM sets it while in force (in the main thread).

    Many processes must leave at one step: JAX takes the signal of any of them and finds a step that none has passed.
    """

    def __init__(self) -> None:
        self._asked = False

    def asked(self, step: int) -> bool:
        """Whether to leave after this step; asked once a step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    def __enter__(self) -> "Stop":
        self._main = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: Any) -> None:
        self._asked = True
