"""`qwen3-jax export`: a training run's model in Hugging Face form, from any of its checkpoints."""

import argparse
from pathlib import Path

from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.options import add_mesh_option, read_mesh, stay_alone

_EPILOG = """\
The run may still be going on. Averaged parameters are written where the run has them (ema_decay), and the optimizer's
state is not read.

example:
  qwen3-jax export runs/pocket pocket-at-2000 --step 2000
"""


def parser() -> Parser:
    result = Parser("export", "Writes the model of a training run as it was at a checkpoint.", _EPILOG)
    result.add_argument("run_dir", metavar="RUN_DIR", help="the run_dir of `qwen3-jax train`")
    result.add_argument("target", metavar="OUT", help="the directory to write")
    result.add_argument("--step", type=whole_number, metavar="N", help="a step with a checkpoint (the newest)")
    add_mesh_option(result)
    return result


def run(args: argparse.Namespace) -> int:
    """Writes the directory and prints its path."""
    from qwen3_jax.cli.common import spinner
    from qwen3_jax.train.run import export_step

    stay_alone("export")
    with spinner(f"exporting {args.run_dir}"):
        step = export_step(Path(args.run_dir), Path(args.target), args.step, read_mesh(args.mesh))
    print(f"{args.target}: the model after step {step}")
    return 0
