"""Ablations from a file: a grid of training runs with seeds, run one after another, and what comes out of them."""

from train.ablate.runner import Outcome, Stopped, run_study
from train.ablate.specialisation import mutual_information, total_variation
from train.ablate.study import Cell, Run, Study, load_study
from train.ablate.table import tabulate, write_table
from train.statistics import Interval, mean_interval, paired_interval

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
