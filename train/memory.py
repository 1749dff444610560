"""Memory that a run takes."""

import os
import resource
import sys
from pathlib import Path

import jax

_STATM = Path("/proc/self/statm")


def memory_bytes() -> int:
    """The fullest local device's peak so far where its backend tells, else what the process has in memory now."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return int(max(peaks)) or resident_bytes()


def resident_bytes() -> int:
    """Of this process; where the system does not tell (outside Linux), the largest it ever was."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
