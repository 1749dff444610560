"""Batches made ahead in a thread."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(stream: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """Makes the next batches in a thread while the devices work; an error in it is raised at `next`."""
    made: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    done = threading.Event()

    def work() -> None:
        item: Any
        while not done.is_set():
            try:
                item = next(stream)
            except Exception as error:  # handed to the consumer, which raises it
                item = error
            while not done.is_set():
                try:
                    made.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, Exception):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        done.set()
        thread.join()
