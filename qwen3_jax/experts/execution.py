"""How the experts of a mixture run: the names of the executions and the one rule that chooses."""

from typing import Literal, cast, get_args

from qwen3_jax.sharding import target_platform

Execution = Literal["reference", "gather", "tiles", "ragged_dot", "megablox", "triton"]
_GROUPED: dict[str, Execution] = {"cpu": "tiles", "tpu": "megablox", "gpu": "triton"}
_RUNS_ON = {"megablox": ("tpu", "cpu"), "triton": ("gpu", "cpu")}
BACKENDS = ("auto", "grouped", *get_args(Execution))


def choose_execution(backend: str, platform: str | None = None) -> Execution:
    """What `backend` stands for, decided when the function is traced.

      reference   every expert sees every token, weight 0 where it was not chosen; to read and to test against.
      gather      the chosen experts' weights are collected, [A, F, D], and multiplied as one batch. For few tokens.
      tiles       assignments sorted by expert, tile by tile (grouped_matmul): reads only the weights of experts that
                  were chosen, each once or nearly so, from one token (tiles of one row) to thousands.
      megablox    the same in a kernel for TPU, which reads the weights where they are. On CPU interpreted.
      triton      the same in a kernel for GPU. On CPU interpreted.
      ragged_dot  the same over `jax.lax.ragged_dot_general`, which XLA lowers densely over all experts on CPU and GPU,
                  and for which it transposes the weights of all experts on TPU.
      grouped     tiles on CPU, megablox on TPU, triton on GPU.
      auto        grouped.

    Where experts are spread over devices (`expert_parallel`), reference and gather stand for grouped.

    Args:
      platform: of the device, `target_platform()` when left out.

    Raises:
      ValueError: an unknown backend, or one that does not run on the platform.
    """
    if backend not in BACKENDS:
        raise ValueError(f"moe_backend must be one of {', '.join(BACKENDS)}, got {backend!r}: choose one")
    platform = platform or target_platform()
    if backend not in get_args(Execution):
        return _GROUPED[platform]
    if platform not in _RUNS_ON.get(backend, (platform,)):
        runs_on = " or ".join(_RUNS_ON[backend])
        raise ValueError(f"moe_backend={backend!r} runs on {runs_on}, got {platform}: use 'auto'")
    return cast(Execution, backend)
