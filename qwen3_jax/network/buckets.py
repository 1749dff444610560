"""Lengths that programs are compiled for: few of them, whatever lengths come."""

PREFILL_CHUNK = 512  # longer prompts are fed in pieces of this many tokens
CACHE_QUANTUM = 256  # cache capacities are multiples of this
_SMALLEST_BUCKET = 16


def prompt_bucket(length: int) -> int:
    """Length a prompt is padded to: a power of two up to the prefill chunk, then a multiple of it.

    In: 5, 16, 17, 512, 513      Out: 16, 16, 32, 512, 1024
    """
    if length > PREFILL_CHUNK:
        return round_up(length, PREFILL_CHUNK)
    bucket = _SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return bucket


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
