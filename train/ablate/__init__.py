"""Ablations from a file: a grid of training runs with seeds, run one after another, and what comes out of them."""

from qwen3_jax.train.ablate.measure import mutual_information, total_variation
from qwen3_jax.train.ablate.runner import Outcome, Stopped, run_study
from qwen3_jax.train.ablate.study import Cell, Run, Study, load_study
from qwen3_jax.train.ablate.table import tabulate, write_table
from qwen3_jax.train.statistics import Interval, mean_interval, paired_interval

__all__ = [
    "Cell",
    "Interval",
    "Outcome",
    "Run",
    "Stopped",
    "Study",
    "load_study",
    "mean_interval",
    "mutual_information",
    "paired_interval",
    "run_study",
    "tabulate",
    "total_variation",
    "write_table",
]
