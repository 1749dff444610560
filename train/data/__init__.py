"""From files to batches: readers, tokens, mixtures, epochs, packing; all of it resumes exactly."""

from qwen3_jax.train.data.examples import sample_texts
from qwen3_jax.train.data.identity import claim_data
from qwen3_jax.train.data.line_files import BadRecord
from qwen3_jax.train.data.make import Data, endless_data, make_data, use_world, world
from qwen3_jax.train.data.packing import Batch, Documents, Example, Packed, batches, fill
from qwen3_jax.train.data.report import MixtureReport

__all__ = [
    "BadRecord",
    "Batch",
    "Data",
    "Documents",
    "Example",
    "MixtureReport",
    "Packed",
    "batches",
    "claim_data",
    "endless_data",
    "fill",
    "make_data",
    "sample_texts",
    "use_world",
    "world",
]
