"""What commands have in common: which model, on which devices and processes, and how to answer."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError, number, whole_number


def add_model_options(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--model",
        metavar="PATH_OR_HUB_ID",
        help="a directory in Hugging Face form, or an id of the hub; without it, the embedded pocket model",
    )
    add(
        "--dtype",
        metavar="NAME",
        help="bfloat16, float32 or float16, of parameters and activations (bfloat16; float32 for the pocket model)",
    )
    add("--adapter", metavar="PATH_OR_HUB_ID", help="low-rank adapters in PEFT's format, merged into the model")
    add_mesh_option(group)


def add_mesh_option(group: Any) -> None:
    group.add_argument(
        "--mesh",
        metavar="SIZES_OR_FILE",
        help="devices to spread it over: fsdp=4,tensor=2 (-1: what is left), a YAML file, or one of configs/mesh",
    )


def config_file(folder: str, name: str) -> Path:
    """A path as it stands; a bare name means a file of configs/`folder`, which an installed wheel holds too."""
    from qwen3_jax.paths import configs_path

    named = configs_path() / folder / f"{name}.yaml"
    return named if not Path(name).exists() and named.is_file() else Path(name)


def read_mesh(text: str | None) -> Any:
    """The `sharding.MeshConfig` of `--mesh`; None without one. A bare name means a file of configs/mesh.

    Raises:
      FileNotFoundError, ValueError: neither sizes nor a file, or sizes that make no mesh.
    """
    from qwen3_jax.paths import configs_path
    from qwen3_jax.sharding import parse_mesh

    if text is None or "=" in text:
        return None if text is None else parse_mesh(text)
    path = config_file("mesh", text)
    if not path.exists():
        names = ", ".join(sorted(path.stem for path in (configs_path() / "mesh").glob("*.yaml")))
        raise FileNotFoundError(f"--mesh must be sizes (fsdp=8,tensor=2), a YAML file or one of {names}, got {text}")
    return parse_mesh(str(path))


def add_process_options(parser: Parser) -> None:
    group = parser.add_argument_group(
        "processes", "Many hosts run the same command. Found without flags on TPU pods, GKE, Slurm and SkyPilot."
    )
    add = group.add_argument
    add("--coordinator", metavar="HOST:PORT", help="process 0 and a free port of it (JAX_COORDINATOR_ADDRESS)")
    add("--num-processes", type=whole_number, metavar="N", help="of the whole job (JAX_NUM_PROCESSES)")
    add("--process-id", type=whole_number, metavar="I", help="of this one, from 0 (JAX_PROCESS_ID)")
    add("--start-timeout", type=number, metavar="SECONDS", help="how long to wait for all processes to start (300)")
    add("--heartbeat-timeout", type=number, metavar="SECONDS", help="when a silent process counts as dead (100)")


def start_processes(args: argparse.Namespace) -> None:
    """Connects this process with the others of its job, where there are others.

    Raises:
      ValueError, TimeoutError: see `sharding.launch.distributed.start`.
    """
    from qwen3_jax.sharding.launch.distributed import start

    start(args.coordinator, args.num_processes, args.process_id, args.start_timeout, args.heartbeat_timeout)


def stay_alone(command: str) -> None:
    """For a command of one process.

    Raises:
      UsageError: it is one of many.
    """
    from qwen3_jax.sharding.launch.distributed import own_cluster

    cluster = own_cluster()
    if cluster is not None:
        raise UsageError(
            f"{command} runs in one process, got one of {cluster.num_processes} ({cluster.kind}): use qwen3-jax "
            "generate, or set JAX_NUM_PROCESSES=1"
        )


def add_generation_options(parser: Parser) -> None:
    """One flag for each field of `infer.GenerationConfig`, named as the field is."""
    mode = parser.add_argument_group("thinking")
    add = mode.add_argument
    switch = mode.add_mutually_exclusive_group()
    switch.add_argument("--thinking", dest="enable_thinking", action="store_true", default=None, help="the default")
    switch.add_argument(
        "--no-thinking", dest="enable_thinking", action="store_false", default=None, help="the hard switch"
    )
    add("--thinking-budget", type=whole_number, metavar="N", help="most tokens to think; 0 for none (no limit)")
    add(
        "--stop-thinking-text",
        metavar="TEXT",
        help='what is written at the budget: "documentation" (the default), "paper", or a text of your own',
    )
    add(
        "--show-thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print the thinking too: dimmed on a terminal (the default there), between <think> and </think> elsewhere",
    )
    group = parser.add_argument_group(
        "sampling", "Without a flag: the checkpoint's generation_config.json, else what the model cards recommend."
    )
    add = group.add_argument
    add("--max-new-tokens", type=whole_number, metavar="N", help="most tokens of thinking and answer (32768 + budget)")
    add("--temperature", type=number, metavar="X", help="0 is greedy (0.6 thinking, 0.7 not)")
    add("--top-p", type=number, metavar="X", help="above 0, at most 1 (0.95 thinking, 0.8 not)")
    add("--top-k", type=whole_number, metavar="N", help="0 turns it off (20)")
    add("--min-p", type=number, metavar="X", help="0 to 1 (0)")
    for name, what in (
        ("presence", "-2 to 2, subtracted once from each token of the answer so far (0)"),
        ("frequency", "-2 to 2, subtracted as often as the token is there (0)"),
        ("repetition", "above 1: less likely are tokens of prompt and answer so far (1)"),
    ):
        add(f"--{name}-penalty", type=number, metavar="X", help=what)
    add(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="ID=X",
        help="-100 to 100 on the logit of a token",
    )
    add("--seed", type=whole_number, metavar="N", help="the same seed gives the same answer (0)")
    add("--stop", action="append", metavar="TEXT", help="end the answer before this text; may be given several times")
    add(
        "--stop-token-id",
        dest="stop_token_ids",
        action="append",
        type=whole_number,
        metavar="ID",
        help="end the answer after this token; may be given several times",
    )
    add("--min-tokens", type=whole_number, metavar="N", help="no end before so many tokens (0)")
    add("--ignore-eos", action="store_true", default=None, help="the checkpoint's end tokens do not end the answer")


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a token id and a number (1234=-5), got {text}") from None


def generation_values(args: argparse.Namespace) -> dict[str, object]:
    """The arguments of `GenerationConfig` that were given."""
    from qwen3_jax.infer import GenerationConfig

    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    values = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    return values if args.logit_bias is None else values | {"logit_bias": dict(args.logit_bias)}
