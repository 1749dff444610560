"""`qwen3-jax train`: one training run from a YAML file."""

import argparse
import dataclasses
from pathlib import Path

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.options import add_mesh_option, add_process_options, read_mesh, start_processes

_EPILOG = """\
A run that was stopped goes on where it was when the same command is given again. The model is exported in Hugging Face
form when it is done, and the path of that directory is printed.

On many hosts the same command runs on each of them; run_dir must be a directory that all of them see.

examples:
  qwen3-jax train configs/train/pocket.yaml run_dir=runs/pocket optimizer.learning_rate=1e-3
  qwen3-jax train pocket run_dir=runs/pocket data.rows=16 --mesh fsdp=-1
"""


def parser() -> Parser:
    """The arguments of this command."""
    result = Parser("train", "Trains a model from a configuration.", _EPILOG)
    result.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one of configs/train (pocket)")
    result.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="values that replace the file's, by their dotted names",
    )
    add_mesh_option(result)
    add_process_options(result)
    return result


def run(args: argparse.Namespace) -> int:
    """Trains to the last step, or to where it is asked to stop."""
    import train
    from qwen3_jax.compile_cache import enable_compile_cache
    from sharding.processes import is_first

    config = train.load_config(config_file(args.config), args.overrides)
    if args.mesh is not None:
        config = dataclasses.replace(config, mesh=read_mesh(args.mesh))
    start_processes(args)
    enable_compile_cache()
    directory = train.run(config)
    if is_first():
        print(directory)
    return 0


def config_file(name: str) -> Path:
    """A path as it stands; a bare name means a file of configs/train, which an installed wheel holds too."""
    from qwen3_jax.paths import configs_path

    named = configs_path() / "train" / f"{name}.yaml"
    return named if not Path(name).exists() and named.is_file() else Path(name)
