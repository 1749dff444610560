"""A full disk, told once and in one line, by whatever library it is met."""

import errno
import functools
import logging
import sys
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
def tell_once() -> None:
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
