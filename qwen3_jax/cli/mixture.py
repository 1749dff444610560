"""`qwen3-jax mixture`: weights of a data mixture, from small proxy runs."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from qwen3_jax.cli.arguments import Parser

_EPILOG = """\
Trains proxies with mixtures that are drawn, fits laws of loss against mixture, and looks for the mixture of least loss.
Where the fit does not hold it says so and proposes nothing. Writes report.md, report.json, and where there is a mixture
train.yaml (for qwen3-jax train) and overlay.yaml (data.mixture alone) into run_dir.

A search that was stopped goes on where it was when the same command is given again: proxies that are done stay done.

examples:
  qwen3-jax corpus runs/corpus
  qwen3-jax mixture configs/mixture/example.yaml run_dir=runs/mixture
  qwen3-jax train runs/mixture/train.yaml run_dir=runs/fitted
"""


def parser() -> Parser:
    result = Parser("mixture", "Fits the weights of a data mixture from small proxy runs.", _EPILOG, json=True)
    result.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/mixture")
    result.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="values other than the file's")
    result.add_argument("--report", metavar="FILE.md", help="write the report there too")
    return result


def run(args: argparse.Namespace) -> int:
    """Searches, and says what was found."""
    from rich.console import Console

    from qwen3_jax.cli.common import print_json
    from qwen3_jax.compile_cache import enable_compile_cache
    from qwen3_jax.train.mixture.report import as_dict, mixture_table, write_report
    from qwen3_jax.train.mixture.search import search, verdict_line
    from qwen3_jax.train.mixture.settings import load_search

    config = load_search(args.config, args.overrides)
    enable_compile_cache()  # proxies are one program
    with contextlib.redirect_stdout(sys.stderr):  # the progress of the runs; stdout is for the result
        found = search(config, say=lambda line: print(line, flush=True))
    command = shlex.join(["qwen3-jax", "mixture", args.config, *args.overrides])
    for path in [Path(config.run_dir) / "report.md", *([Path(args.report)] if args.report else [])]:
        write_report(path, config, found, command)
    if args.json:
        print_json(as_dict(config, found))
        return 0
    console = Console(highlight=False)
    console.print(mixture_table(config, found))
    print(verdict_line(found))
    if found.best is not None:
        print(Path(config.run_dir) / "train.yaml")
    return 0
