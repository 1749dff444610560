"""Compiled programs kept on disk, so that the second start of the same model compiles nothing."""

import os
import tempfile
import warnings
from pathlib import Path

import jax

VARIABLE = "QWEN3_JAX_COMPILATION_CACHE_DIR"
_DIRECTORY = "jax_compilation_cache_dir"


def enable_compile_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache; entry points call this before anything compiles.

    The directory is `$QWEN3_JAX_COMPILATION_CACHE_DIR` ("off" for none), else the one JAX is already configured with
    (`$JAX_COMPILATION_CACHE_DIR`), else `qwen3-jax/compiled` in the user's cache directory. Small programs are kept
    too: a first token takes a handful of them.

    Returns:
      The directory, or None when the cache is off or its directory can not be written (which is warned of).
    """
    setting = os.environ.get(VARIABLE, "").strip()
    if setting.lower() == "off":
        return None
    directory = Path(setting or getattr(jax.config, _DIRECTORY) or user_cache() / "compiled").expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept, every start compiles again: {directory} can not be written "
            f"({error.strerror}); set {VARIABLE} to another directory, or to off",
            stacklevel=2,
        )
        return None
    jax.config.update(_DIRECTORY, str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return directory


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/qwen3-jax`; a relative value counts as unset, as the XDG base directory specification says."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "qwen3-jax"
