"""Leaving in order: SIGTERM asks the loop to save and go."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(BaseException):
    """SIGTERM came where it ends what is done at once (`Stop.at_once`); like KeyboardInterrupt, no `except Exception`
    takes it for an error."""


class Stop:
    """Asks the loop to save and leave; SIGTERM sets it while in force (in the main thread).

    Many processes must leave at one step: JAX takes the signal of any of them and finds a step that none has passed.
    """

    def __init__(self) -> None:
        self._asked, self._at_once = False, False

    def asked(self, step: int) -> bool:
        """Whether to leave after this step; asked once a step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """SIGTERM leaves this block where it is: for work before the first step, which may take long and keeps what is
        finished by itself. One of many processes is not left so: JAX takes their signals.

        Raises:
          Stopped: it came, now or before.
        """
        self._at_once = True
        try:
            if self._asked:
                raise Stopped
            yield
        except BaseException as error:
            if self._asked and not isinstance(error, Stopped):  # a library's word for it
                raise Stopped from error
            raise
        finally:
            self._at_once = False
        if self._asked:
            raise Stopped

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
        if self._at_once:
            raise Stopped
