"""A training run that is killed at a chosen moment: `python killed.py CONFIG.yaml REFERENCE_DIR RUN_DIR MOMENT`.

The moments: `line`, half-way through writing the line of step 11, after a run without a break in REFERENCE_DIR; `save`,
just before the checkpoint of step 16 is whole; `never`.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))  # started by its path, from anywhere

from qwen3_jax import train
from qwen3_jax.train.report import sinks


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def die_in_line(step: int, checkpoint: Path) -> None:
    """When the checkpoint before it is whole, so that one knows where the run goes on."""
    write = sinks.JsonLines.write

    def torn(self: Any, record: Any) -> None:
        if record["step"] == step:
            while not checkpoint.exists():
                time.sleep(0.01)
            os.write(self._file, b'{"step": 11, "lo')
            die()
        write(self, record)

    sinks.JsonLines.write = torn  # type: ignore[method-assign]


def die_in_save(checkpoint: Path) -> None:
    """When everything is written and only the renaming is left, which makes a checkpoint whole."""
    for name in ("rename", "replace"):
        move = getattr(os, name)

        def dies(source: Any, target: Any, *rest: Any, move: Any = move, **more: Any) -> Any:
            if Path(os.fspath(target)) == checkpoint:
                die()
            return move(source, target, *rest, **more)

        setattr(os, name, dies)


def main(config: str, reference: str, run_dir: str, moment: str) -> None:
    if moment == "line":
        train.run(train.load_config(config, [f"run_dir={reference}"]))
        die_in_line(11, Path(run_dir) / "checkpoints" / "8")
    if moment == "save":
        die_in_save(Path(run_dir) / "checkpoints" / "16")
    train.run(train.load_config(config, [f"run_dir={run_dir}"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
