"""The sections of a training configuration, one file a concern; `train.config` puts them together and reads them."""

from train.settings.ablation import AblationConfig
from train.settings.data import DataConfig, LengthShare, MixtureConfig, SourceConfig, TokenizerConfig, WeightConfig
from train.settings.evaluation import EvaluationConfig
from train.settings.fusion import FusionConfig
from train.settings.lora import LoraConfig
from train.settings.loss import LossConfig
from train.settings.optimizer import OptimizerConfig
from train.settings.report import ReportConfig

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
