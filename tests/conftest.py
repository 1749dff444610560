"""Strict settings of every test: no silent rank or dtype promotion, eight devices, warnings are errors, no network."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Before jax, transformers and huggingface_hub are imported; subprocesses of the tests inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["QWEN3_JAX_COMPILATION_CACHE_DIR"] = "off"  # a test compiles what it runs and writes nothing to the home

# A shell that starts the suite in the background has it ignore Ctrl-C; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest

from tests import support

# Through the configuration and not XLA_FLAGS, so that programs the tests start see one device, as a user's do.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed() -> Iterator[None]:
    """Compiled programs (and what their traces hold) go with their file: kept, they add up to gigabytes in a worker."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The shared data (official tokenizer and configs); skips the test where it is absent."""
    found = support.shared_dir()
    if found is None:
        pytest.skip("no shared data: set QWEN3_JAX_SHARED to its directory")
    return found
