"""The command line, `qwen3-jax COMMAND ...`: the top of the house, which nothing imports.

Exit status: 0 on success, 2 with one line on stderr for a user's mistake, 1 with one line where the machine gave out
(memory, a full disk, a loss that is not finite), 130 after Ctrl-C.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from qwen3_jax.cli.arguments import UsageError, did_you_mean
from qwen3_jax.cli.boundary import guarded

__all__ = ["main"]

# Each is a module of this package with `parser()` and `run(args)`; only the one that is asked for is imported.
COMMANDS = {
    "generate": "answer one prompt, thinking or not, under an exact budget",
    "chat": "talk with a model, turn by turn",
    "inspect": "say what a checkpoint is: architecture, sizes, tokenizer, and anything odd",
    "convert": "write a checkpoint anew: another dtype, other shard sizes",
    "tokenize": "make tokens of text or chat files, ahead of training",
    "train": "train a model from a configuration",
    "export": "write the model of a training run as it was at a checkpoint",
    "corpus": "make a small multilingual corpus with labels, from a seed",
    "annotate": "give labels to the examples of a corpus",
    "mixture": "fit the weights of a data mixture from small proxy runs",
    "ablate": "run a grid of training runs with seeds from a file, and tabulate it",
    "demo": "both modes and the thinking budget on the embedded pocket model",
    "plan": "what a model needs on a TPU slice, compiled without the slice",
}

_OVERVIEW = """\
usage: qwen3-jax COMMAND ...

Qwen3 in JAX: run, look into, convert and train checkpoints in Hugging Face form.

{commands}

qwen3-jax COMMAND --help lists what a command takes; with --debug it shows the traceback of an error.
Without --model, the embedded pocket model answers. qwen3-jax --version names the version.

Compiled programs are kept in the user's cache directory, so that a second start is quick;
QWEN3_JAX_COMPILATION_CACHE_DIR moves them (or turns this off: off)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(arguments), debug="--debug" in arguments)


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(f"a command is needed, got none: choose one of {', '.join(COMMANDS)} (see qwen3-jax --help)")
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(_OVERVIEW.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())))
        return 0
    if name == "--version":
        print(f"qwen3-jax {importlib.metadata.version('qwen3-jax')}")
        return 0
    if name not in COMMANDS:
        raise UsageError(
            f"a command must be one of {', '.join(COMMANDS)}, got {name!r}: "
            f"{did_you_mean(name, COMMANDS) or 'see qwen3-jax --help'}"
        )
    command = importlib.import_module(f"qwen3_jax.cli.{name}")
    status: int = command.run(command.parser().parse(rest))
    return status
