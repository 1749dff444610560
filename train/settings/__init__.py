"""The sections of a training configuration, one file a concern; `train.config` puts them together and reads them."""

from qwen3_jax.train.settings.ablation import AblationConfig
from qwen3_jax.train.settings.data import (
    DataConfig,
    LengthShare,
    MixtureConfig,
    SourceConfig,
    TokenizerConfig,
    WeightConfig,
)
from qwen3_jax.train.settings.evaluation import EvaluationConfig
from qwen3_jax.train.settings.fusion import FusionConfig
from qwen3_jax.train.settings.lora import LoraConfig
from qwen3_jax.train.settings.loss import LossConfig
from qwen3_jax.train.settings.optimizer import OptimizerConfig
from qwen3_jax.train.settings.report import ReportConfig

__all__ = [
    "AblationConfig",
    "DataConfig",
    "EvaluationConfig",
    "FusionConfig",
    "LengthShare",
    "LoraConfig",
    "LossConfig",
    "MixtureConfig",
    "OptimizerConfig",
    "ReportConfig",
    "SourceConfig",
    "TokenizerConfig",
    "WeightConfig",
]
