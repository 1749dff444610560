"""`qwen3-jax train`: one training run from a YAML file."""

import argparse
import dataclasses

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.options import add_mesh_option, add_process_options, config_file, read_mesh, start_processes

_EPILOG = """\
A run that was stopped or killed goes on from its last checkpoint when the same command is given again. SIGTERM saves
and leaves with 0. The model is exported in Hugging Face form when the run is done, and the path of that directory is
printed; `qwen3-jax export` writes it from any checkpoint.

On many hosts the same command runs on each of them; run_dir must be a directory that all of them see.

examples:
  qwen3-jax train configs/train/pocket.yaml run_dir=runs/pocket optimizer.learning_rate=1e-3
  qwen3-jax train pocket run_dir=runs/pocket data.rows=16 --mesh fsdp=-1
"""


def parser() -> Parser:
    result = Parser("train", "Trains a model from a configuration.", _EPILOG)
    result.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one of configs/train (pocket)")
    result.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="values that replace the file's, by their dotted names",
    )
    result.add_argument(
        "--profile-steps",
        metavar="FIRST:LAST",
        type=_steps,
        help="trace these steps into run_dir/profile, for TensorBoard or Perfetto (report.profile_steps)",
    )
    add_mesh_option(result)
    add_process_options(result)
    return result


def run(args: argparse.Namespace) -> int:
    """Trains to the last step, or to where it is asked to stop."""
    from qwen3_jax.compile_cache import enable_compile_cache
    from qwen3_jax.train.config import load_config
    from qwen3_jax.train.run import command

    config = load_config(config_file("train", args.config), args.overrides)
    if args.mesh is not None:
        config = dataclasses.replace(config, mesh=read_mesh(args.mesh))
    if args.profile_steps is not None:
        report = dataclasses.replace(config.report, profile_steps=args.profile_steps)
        config = dataclasses.replace(config, report=report)
    start_processes(args)
    enable_compile_cache()
    command(config)
    return 0


def _steps(text: str) -> tuple[int, ...]:
    """In: "10:20"     Out: (10, 20)"""
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST such as 10:20, got {text!r}")
    return int(first), int(last)
