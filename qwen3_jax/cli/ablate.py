"""`qwen3-jax ablate`: a grid of training runs with seeds, and a table of what they say."""

import argparse
import signal
from pathlib import Path
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError
from qwen3_jax.cli.boundary import say
from qwen3_jax.cli.options import config_file

_EPILOG = """\
Every run is a process of its own, so that one that crashes or diverges is a result. The same command given again goes
on where it was: what is finished is known by its configuration, what is half done resumes, what failed is tried again.
RUN_DIR gets table.md, table.json, curves.png, metrics.png, and runs/ with each run's directory.

With --shard, or when it is started as one process of many (Slurm, GKE, JAX_PROCESS_ID ...), a process runs its share;
all must see the same run_dir, and the one that ends last writes the whole table.

examples:
  qwen3-jax ablate configs/ablation/qk-norm.yaml run_dir=runs/qk-norm
  qwen3-jax ablate qk-norm run_dir=runs/qk-norm steps=50 seeds=[0] --shard 0/2
"""


def parser() -> Parser:
    result = Parser("ablate", "Runs an ablation from its file.", _EPILOG)
    result.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one of configs/ablation")
    result.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="run_dir=DIR, seeds=[...], and values that replace those of every run",
    )
    result.add_argument("--shard", metavar="I/N", help="run only every N-th run, from number I on (0 to N - 1)")
    result.add_argument("--page", metavar="FILE", help="a Markdown page to put the table and plots into, too")
    result.add_argument("--json", action="store_true", help="one JSON object, the table, instead of text")
    return result


def run(args: argparse.Namespace) -> int:
    """Runs what is left and writes the table."""
    root = _run_dir(args)
    shard = _shard(args.shard)

    from qwen3_jax.cli.common import print_result
    from qwen3_jax.train.ablate import Stopped, load_study, run_study, tabulate, write_table
    from qwen3_jax.train.ablate.plots import write_plots
    from qwen3_jax.train.ablate.table import put_on_page

    study = load_study(config_file("ablation", args.config), args.overrides)
    root.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        outcomes = run_study(study, root, shard, report=say)
    except Stopped:
        say("asked to stop: run the same command to go on")
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    table = tabulate(study, outcomes)
    plots = write_plots(root, table, outcomes)
    write_table(root, table, plots)
    if args.page is not None:
        put_on_page(Path(args.page), table, root, plots)
    return print_result(args, table, root / "table.md")


def _run_dir(args: argparse.Namespace) -> Path:
    """The directory of `run_dir=DIR`, which is taken out of the overrides."""
    found = [word for word in args.overrides if word.startswith("run_dir=")]
    if len(found) != 1 or found[0] == "run_dir=":
        raise UsageError(f"run_dir must be set once, got {len(found)} times: add run_dir=DIR to the command")
    args.overrides = [word for word in args.overrides if word not in found]
    return Path(found[0].removeprefix("run_dir=")).expanduser()


def _shard(text: str | None) -> tuple[int, int]:
    """In: "1/4"     Out: (1, 4); without a flag, this process's place among those of its job."""
    if text is None:
        from qwen3_jax.sharding.launch.distributed import own_cluster

        cluster = own_cluster()
        return (0, 1) if cluster is None else (cluster.process_id, cluster.num_processes)
    index, _, shards = text.partition("/")
    if not (index.isdigit() and shards.isdigit() and int(index) < int(shards)):
        raise UsageError(f"--shard must be I/N with I from 0 to N - 1, got {text!r}: write e.g. --shard 0/2")
    return int(index), int(shards)


def _leave(*_: Any) -> None:
    from qwen3_jax.train.ablate import Stopped

    raise Stopped
