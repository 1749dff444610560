"""What the CUDA compiler wants to know of a GPU that is not here: its description, written out as XLA's text proto.

XLA chooses launch sizes, tiles and fusions by these figures (message GpuTargetConfigProto of openxla/xla,
xla/stream_executor/device_description.proto). Sources: NVIDIA's architecture white papers (multiprocessors, L2, boost
clock) and, for what they share within a compute capability, the table "Technical Specifications per Compute Capability"
of the CUDA C++ Programming Guide. Memory and its bandwidth are those of `qwen3_jax.sharding.ahead_of_time.chips`.
"""

import dataclasses

from qwen3_jax.sharding.ahead_of_time.chips import Chip

_KIB, _MIB = 2**10, 2**20


@dataclasses.dataclass(frozen=True)
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


BOARDS = {
    "a100": Board("NVIDIA A100-SXM4-80GB", 8, False, 108, 64, 1.41, 40 * _MIB, 164 * _KIB),
    "h100": Board("NVIDIA H100 80GB HBM3", 9, True, 132, 128, 1.98, 50 * _MIB, 228 * _KIB),
    "h200": Board("NVIDIA H200", 9, True, 132, 128, 1.98, 50 * _MIB, 228 * _KIB),
    "b200": Board("NVIDIA B200", 10, True, 148, 128, 1.965, 126 * _MIB, 228 * _KIB),
}


def target_config(chip: Chip) -> str:
    """The description of a GPU of the table, as text.

    In: the h100 of `chips`     Out: 'gpu_device_info { name: "NVIDIA H100 80GB HBM3" core_count: 132 ...'
    """
    board = BOARDS[chip.name]
    extension = "ACCELERATED_FEATURES" if board.accelerated else "NONE"
    capability = f"{{ major: {board.capability} feature_extension: {extension} }}"
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
    lines = "".join(f"  {name}: {value}\n" for name, value in fields.items())
    info = f"gpu_device_info {{\n{lines}  cuda_compute_capability {capability}\n}}\n"
    return f'{info}platform_name: "CUDA"\ndevice_description_str: "{board.kind}"\n'
