"""What accelerators can do: the published figures that a plan holds its program against.

Sources (all read 2026-11):
  TPU   the pages "TPU v4", "v5e", "v5p", "v6e", "tpu7x" of docs.cloud.google.com/tpu/docs: peak bf16, HBM, inter-chip
        (ICI, both ways) and data-centre (DCN) bandwidth per chip. One-way bandwidth of a link and DCN of v4 and v5e:
        jax-ml.github.io/scaling-book/tpus ("TPU specs"), whose links are what is reached, a tenth below the nominal.
        The chip-local link of tpu7x (six times one ICI link of a direction): docs.cloud.google.com/tpu/docs/tpu7x.
  GPU   NVIDIA's data sheets of the SXM boards: dense bf16 (half of what is printed "with sparsity"), HBM bandwidth, and
        half of the NVLink bandwidth, which is printed for both ways. Memory: what the driver reports, less than
        the nominal 80, 141 and 180 GiB (descriptions in openxla/xla, xla/backends/gpu/target_config/specs).
        Network: one card a GPU as in NVIDIA's DGX A100 (200 Gbit/s), H100, H200 and B200 (400 Gbit/s).
"""

import dataclasses
import difflib

GB, GIB, TERA = 10**9, 2**30, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip (a TPU chip may be two devices of JAX).

    Attributes:
      flops: bf16 operations a second at the peak.
      hbm_bytes: memory; the TPU compiler keeps some for itself (15.75 of 16 GiB are left on v5e).
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second of one network link in one direction.
      torus: dimensions of the torus the links make; 0 for a switch, to which `link_bandwidth` is the whole connection.
      wrap: a torus dimension of a slice is closed into a ring when its size is a multiple of this.
      dcn_bandwidth: bytes a second to other slices (TPU) or nodes (GPU).
      devices: JAX devices on one chip.
      kinds: `jax.Device.device_kind` as the runtimes spell it (TPU: libtpu; GPU: the board's name). The GPUs are
        SXM boards; a PCIe board of the same name does less and is not listed. Nor is TPU v4, one device a chip or two.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int
    wrap: int
    dcn_bandwidth: float
    devices: int
    kinds: tuple[str, ...]


def _chip(
    name: str,
    tflops: float,
    memory: int,
    hbm: float,
    link: float,
    torus: int,
    dcn: float,
    *kinds: str,
    devices: int = 1,
) -> Chip:
    """From the figures as they are published; bandwidths in GB/s."""
    wrap = {0: 0, 2: 16, 3: 4}[torus]  # 2-D pods close a dimension at its full 16 chips, 3-D ones by cubes of 4
    return Chip(name, tflops * TERA, memory, hbm * GB, link * GB, torus, wrap, dcn * GB, devices, kinds)


CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v4", 275, 32 * GIB, 1228, 45, 3, 6.25, devices=2),
        _chip("v5e", 197, 16 * GIB, 819, 45, 2, 3.125, "TPU v5 lite", "TPU v5e"),
        _chip("v5p", 459, 95 * GIB, 2765, 90, 3, 6.25, "TPU v5", "TPU v5p"),
        _chip("v6e", 918, 32 * GIB, 1638, 90, 2, 12.5, "TPU v6 lite", "TPU v6e"),
        _chip("tpu7x", 2307, 192 * GIB, 7380, 90, 3, 12.5, "TPU7x", devices=2),
        _chip("a100", 312, 85_100_068_864, 2039, 300, 0, 25),
        _chip("h100", 989.4, 84_942_979_072, 3350, 450, 0, 50, "NVIDIA H100 80GB HBM3"),
        _chip("h200", 989.4, 151_397_597_184, 4800, 450, 0, 50, "NVIDIA H200"),
        _chip("b200", 2250, 191_514_411_008, 7700, 900, 0, 50, "NVIDIA B200"),
    )
}


def peak_flops(device_kind: str) -> float | None:
    """bf16 operations a second of one JAX device at the published peak; None for a kind that is not in the table."""
    return next((chip.flops / chip.devices for chip in CHIPS.values() if device_kind in chip.kinds), None)


def find_chip(name: str) -> Chip:
    """The chip of this name.

    Raises:
      ValueError: none of the table.
    """
    if name not in CHIPS:
        near = difflib.get_close_matches(name.lower(), CHIPS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one"
        raise ValueError(f"a chip must be one of {', '.join(CHIPS)}, got {name!r}: {remedy}")
    return CHIPS[name]
