"""Training Qwen3: data, loss, optimizer, step, loop; `train.pocket` makes the embedded pocket model."""

from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.data import Batch, Data, Example, make_data, use_world
from qwen3_jax.train.pocket.source import PocketWorld
from qwen3_jax.train.run import main, run

__all__ = ["Batch", "Data", "Example", "TrainConfig", "load_config", "main", "make_data", "run"]

use_world(PocketWorld())
