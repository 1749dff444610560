"""Slices by name, the table of chips, and what the network makes of a group of devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from sharding import MESH_AXES
from sharding.ahead import Buffer, read_out_of_memory
from sharding.chips import CHIPS, find_chip
from sharding.topology import parse_topology
from sharding.traffic import group_seconds, physical_extents


class Device:
    """As much of a device as the network's arithmetic looks at."""

    platform = "tpu"

    def __init__(self, coords, slice_index=None):
        self.coords = coords
        self.slice_index = slice_index


def mesh_of_slice(shape, sizes, slices=1):
    """A mesh whose axes lie on the torus in order."""
    devices = np.empty((slices, *shape), dtype=object)
    for index in np.ndindex(devices.shape):
        devices[index] = Device(index[1:], index[0] if slices > 1 else None)
    grid = devices.reshape([sizes.get(axis, 1) for axis in MESH_AXES])
    return type(
        "Mesh", (), {"devices": grid, "axis_names": MESH_AXES, "shape": {a: sizes.get(a, 1) for a in MESH_AXES}}
    )


def test_a_slice_by_its_name():
    topology = parse_topology("v5p:8x8x4")
    assert (topology.chips, topology.num_devices, topology.name) == (256, 256, "v5p:8x8x4")
    assert parse_topology("tpu7x:4x4x4").num_devices == 128  # two devices a chip
    assert parse_topology("v6e:16x16", slices=2).chips == 512


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5q:2x4", "did you mean v5"),
        ("v5e", "2 sizes"),
        ("v5e:2x4x4", "2 sizes"),
        ("v5p:8x8", "3 sizes"),
        ("v5e:0x4", "2 sizes"),
        ("v5e:2 x 4", "2 sizes"),
        ("h100:8", "GPU"),
    ],
)
def test_a_slice_that_is_none(name, says):
    with pytest.raises(ValueError, match=says) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


def test_the_number_of_slices_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        parse_topology("v5e:2x4", 0)


def test_the_chips_are_what_their_makers_publish():
    v5p = find_chip("v5p")
    assert (v5p.flops, v5p.hbm_bytes, v5p.hbm_bandwidth) == (459e12, 95 * 2**30, 2765e9)
    assert find_chip("tpu7x").devices == 2
    for chip in CHIPS.values():
        assert 10 < chip.flops / chip.hbm_bandwidth < 1000  # operations a byte: nothing is off by a power of ten


def test_extents_and_rings():
    mesh = mesh_of_slice((8, 8, 4), {"fsdp": 64, "expert": 4})
    chip = find_chip("v5p")
    assert physical_extents(("expert",), chip, mesh) == [4]
    assert physical_extents(("fsdp",), chip, mesh) == [8, 8]
    # both dimensions are rings of 8: four links of 90 GB/s
    assert group_seconds("all-gather", 360e9, ("fsdp",), chip, mesh) == pytest.approx(1.0)
    # one ring of 4: two links; a byte of an all-to-all goes one link far on average
    assert group_seconds("all-to-all", 180e9, ("expert",), chip, mesh) == pytest.approx(1.0)


def test_a_short_dimension_of_a_flat_torus_is_no_ring():
    mesh = mesh_of_slice((2, 4), {"fsdp": 2, "tensor": 4})
    assert group_seconds("all-gather", 45e9, ("tensor",), find_chip("v5e"), mesh) == pytest.approx(1.0)


def test_between_slices_the_data_centre_network_counts():
    mesh = mesh_of_slice((2, 2, 2), {"data": 2, "fsdp": 8}, slices=2)
    chip = find_chip("v5p")
    assert physical_extents(("data",), chip, mesh) is None
    assert group_seconds("all-reduce", 6.25e9, ("data",), chip, mesh) == pytest.approx(1.0)
    # what the compiler itself sends from slice to slice names no axis of the mesh
    assert physical_extents(("slices",), chip, mesh) is None
    assert group_seconds("send", 6.25e9, ("slices",), chip, mesh) == pytest.approx(1.0)


def test_what_a_failed_compilation_says():
    message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm.

  Largest program allocations in hbm:

  1. Size: 16.00G
     Operator: op_name="jit(f)/dot_general"
     Shape: f32[64,16384,4096]{2,1,0:T(8,128)}
     Allocation type: HLO temp

  2. Size: 512.0M
     Shape: bf16[16384,16384]{1,0}
"""
    needed, buffers = read_out_of_memory(message)
    assert needed == int(24.5 * 2**30)
    assert buffers == (
        Buffer(16 * 2**30, "f32[64,16384,4096]{2,1,0:T(8,128)} jit(f)/dot_general"),
        Buffer(512 * 2**20, "bf16[16384,16384]{1,0}"),
    )
    short = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (33.00G) exceeds"
    )
    assert read_out_of_memory(short) == (33 * 2**30, ())


def test_a_mesh_of_the_devices_at_hand_has_no_torus():
    mesh = Mesh(np.array(jax.devices()).reshape(1, 8, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 5)
    assert physical_extents(("fsdp",), find_chip("h100"), mesh) == []
