"""What the CUDA compiler wants to know of a GPU that is not here: its description, written out as XLA's text proto.

XLA chooses launch sizes, tiles and fusions by these figures (message GpuTargetConfigProto of openxla/xla,
xla/stream_executor/device_description.proto). Sources: NVIDIA's architecture white papers (multiprocessors, L2, boost
clock) and, for what they share within a compute capability, the table "Technical Specifications per Compute Capability"
of the CUDA C++ Programming Guide. Memory and its bandwidth are those of `qwen3_jax.sharding.ahead_of_time.chips`.
"""

import dataclasses

from qwen3_jax.sharding.ahead_of_time.chips import Chip

_KIB = 2**10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A GPU's limits.

    Attributes:
      kind: what JAX calls the device.
      capability: major number of the compute capability; the minor one is 0.
      accelerated: whether kernels may use the instructions of this very architecture (sm_90a, sm_100a).
      cores: streaming multiprocessors.
      fpus: float32 units of one.
      clock_ghz: boost clock.
      l2_bytes: cache of all multiprocessors.
      shared_bytes: shared memory of one multiprocessor, of which a block may have all but 1 KiB.
    """

    kind: str
    capability: int
    accelerated: bool
    cores: int
    fpus: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int


def _hopper(kind: str) -> Board:
    return Board(
        kind=kind,
        capability=9,
        accelerated=True,
        cores=132,
        fpus=128,
        clock_ghz=1.98,
        l2_bytes=50 * _KIB**2,
        shared_bytes=228 * _KIB,
    )


BOARDS = {
    "a100": Board(
        kind="NVIDIA A100-SXM4-80GB",
        capability=8,
        accelerated=False,
        cores=108,
        fpus=64,
        clock_ghz=1.41,
        l2_bytes=40 * _KIB**2,
        shared_bytes=164 * _KIB,
    ),
    "h100": _hopper("NVIDIA H100 80GB HBM3"),
    "h200": _hopper("NVIDIA H200"),
    "b200": Board(
        kind="NVIDIA B200",
        capability=10,
        accelerated=True,
        cores=148,
        fpus=128,
        clock_ghz=1.965,
        l2_bytes=126 * _KIB**2,
        shared_bytes=228 * _KIB,
    ),
}


def target_config(chip: Chip) -> str:
    """The description of a GPU of the table, as text.

    In: the h100 of `chips`     Out: 'gpu_device_info { name: "NVIDIA H100 80GB HBM3" core_count: 132 ...'
    """
    board = BOARDS[chip.name]
    extension = "ACCELERATED_FEATURES" if board.accelerated else "NONE"
    fields = {
        "name": f'"{board.kind}"',
        "device_vendor": '"NVIDIA Corporation"',
        "core_count": board.cores,
        "fpus_per_core": board.fpus,
        "clock_rate_ghz": board.clock_ghz,
        "l2_cache_size": board.l2_bytes,
        "device_memory_size": chip.hbm_bytes,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "shared_memory_per_core": board.shared_bytes,
        "shared_memory_per_block": 48 * _KIB,
        "shared_memory_per_block_optin": board.shared_bytes - _KIB,
        "registers_per_core_limit": 64 * _KIB,
        "registers_per_block_limit": 64 * _KIB,
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
    }
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    lines.append(f"  cuda_compute_capability {{ major: {board.capability} feature_extension: {extension} }}")
    return "\n".join(
        ["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"', f'device_description_str: "{board.kind}"', ""]
    )
