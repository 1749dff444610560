"""Where errors become one line and an exit status."""

import contextlib
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

SUCCESS, BROKEN, MISTAKE = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 128 + signal.SIGINT, 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 0


def guarded(action: Callable[[], int], *, debug: bool = False) -> int:
    """Runs a command; a user's mistake becomes one line on stderr and status 2, a bug stays a traceback.

    Warnings meant for the user are one line each too, and said once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn_once(warnings.showwarning)
        try:
            status = action()
            sys.stdout.flush()
            return status
        except SystemExit as leave:  # argparse after --help; rich, with 1, when the reader of our output has left
            return PIPE_CLOSED if leave.code else SUCCESS
        except KeyboardInterrupt:
            print(file=sys.stderr)
            _leave_the_others(INTERRUPTED)
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output has left, as in `qwen3-jax generate ... | head -1`
            _silence_stdout()
            return PIPE_CLOSED
        except Exception as error:
            verdict, line = explain(error)
            if verdict is None:
                _leave_the_others(BROKEN, show=True)
                raise
            if debug:
                traceback.print_exc()
            say(f"error: {line}")
            _leave_the_others(verdict)
            return verdict


def _leave_the_others(status: int, show: bool = False) -> None:
    """Ends one process of many without waiting for the others, who may be waiting for it; else returns.

    Args:
      show: print the traceback first.
    """
    distributed = sys.modules.get("qwen3_jax.sharding.launch.distributed")  # not imported: no process was started
    if distributed is not None and distributed.is_started():
        if show:
            traceback.print_exc()
        distributed.leave(status)


def explain(error: Exception) -> tuple[int | None, str]:
    """Exit status and line for an error; no status for what is a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return BROKEN if full else MISTAKE, f"{name}{error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return MISTAKE, text or type(error).__name__
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return BROKEN, f"the memory is not enough for this model and prompt ({text[:200] or 'out of memory'})"
    if isinstance(error, FloatingPointError):
        return BROKEN, text
    if isinstance(error, RuntimeError) and ("Connection closed by peer" in text or "Connection reset by peer" in text):
        return BROKEN, f"another process of this job has ended, see what it said ({text[:200]})"
    if isinstance(error, RuntimeError) and "nable to initialize backend" in text:
        return MISTAKE, f"{text[:300]}: correct JAX_PLATFORMS, or install JAX for this device"
    return None, text


def say(line: str) -> None:
    """One line on stderr."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def _warn_once(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows a user's warning as one line, each text once; the others as they were."""
    said: set[str] = set()

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, UserWarning):
            otherwise(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            say(f"warning: {message}")

    return show


def _silence_stdout() -> None:
    """Keeps the interpreter from failing once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
