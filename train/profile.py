"""A profile of some steps, for TensorBoard's profile plug-in, XProf or Perfetto."""

import warnings
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.train.config import TrainConfig


class Profile:
    """Traces the steps `report.profile_steps` (the first and the last one count) into run_dir/profile."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        steps = config.report.profile_steps
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._directory = Path(config.run_dir) / "profile"
        self._running = False
        if steps and not (set(self._steps) & set(range(first_step, config.steps + 1))):
            warnings.warn(
                f"report.profile_steps has no effect: this start does steps {first_step} to {config.steps}",
                stacklevel=2,
            )

    def before(self, step: int) -> None:
        """To be called before step `step` is dispatched."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, done: Any) -> None:
        """To be called with what the step gives; waits for it where it is the last of the profile."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(done)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still going on."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
