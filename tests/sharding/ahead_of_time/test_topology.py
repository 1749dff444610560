"""Slices by name, the table of chips, and what the network makes of a group of devices."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from qwen3_jax.sharding import MESH_AXES
from qwen3_jax.sharding.ahead_of_time.chips import CHIPS, find_chip
from qwen3_jax.sharding.ahead_of_time.compile import Buffer, read_out_of_memory
from qwen3_jax.sharding.ahead_of_time.gpu_target import BOARDS, target_config
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
from qwen3_jax.sharding.ahead_of_time.traffic import group_seconds, physical_extents


class Device:
    """As much of a device as the network's arithmetic looks at."""

    platform = "tpu"

    def __init__(self, coords=None, slice_index=None, process_index=0):
        self.coords = coords
        self.slice_index = slice_index
        self.process_index = process_index


def mesh_of_slice(shape, sizes, slices=1):
    """A mesh whose axes lie on the torus in order."""
    devices = np.empty((slices, *shape), dtype=object)
    for index in np.ndindex(devices.shape):
        devices[index] = Device(index[1:], index[0] if slices > 1 else None)
    grid = devices.reshape([sizes.get(axis, 1) for axis in MESH_AXES])
    return type(
        "Mesh", (), {"devices": grid, "axis_names": MESH_AXES, "shape": {a: sizes.get(a, 1) for a in MESH_AXES}}
    )


def mesh_of_hosts(hosts, gpus, sizes):
    """A mesh over GPUs in the order of their hosts."""
    devices = np.array([Device(process_index=number // gpus) for number in range(hosts * gpus)], dtype=object)
    grid = devices.reshape([sizes.get(axis, 1) for axis in MESH_AXES])
    return type("Mesh", (), {"devices": grid, "axis_names": MESH_AXES})


def test_a_slice_by_its_name():
    topology = parse_topology("v5p:8x8x4")
    assert (topology.chips, topology.num_devices, topology.name) == (256, 256, "v5p:8x8x4")
    assert parse_topology("tpu7x:4x4x4").num_devices == 128  # two devices a chip
    assert parse_topology("v6e:16x16", slices=2).chips == 512


def test_hosts_of_gpus_by_their_name():
    topology = parse_topology("h100:4x8")
    assert (topology.shape, topology.chips, topology.num_devices, topology.name) == ((4, 8), 32, 32, "h100:4x8")
    assert parse_topology("a100:1x1").num_devices == 1
    with pytest.raises(ValueError, match="GPUs must have no slices, got 2: write the hosts, as in h100:2x8"):
        parse_topology("h100:1x8", slices=2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5q:2x4", "did you mean v5"),
        ("v5e", "2 sizes"),
        ("v5e:2x4x4", "2 sizes"),
        ("v5p:8x8", "3 sizes"),
        ("v5e:0x4", "2 sizes"),
        ("v5e:2 x 4", "2 sizes"),
        ("h100:8", "hosts x GPUs of a host.* write them as in h100:1x8"),
        ("h100:1x2x8", "2 sizes"),
        ("h100:0x8", "2 sizes"),
        ("b200:1x72", "at most 8 GPUs"),
        ("h300:1x8", "did you mean h[12]00"),
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
    h100 = find_chip("h100")
    assert (h100.flops, h100.hbm_bandwidth, h100.link_bandwidth, h100.dcn_bandwidth) == (989.4e12, 3.35e12, 450e9, 50e9)
    nominal = {"a100": 80, "h100": 80, "h200": 141, "b200": 180}
    for name, gib in nominal.items():
        assert 0.98 * gib < find_chip(name).hbm_bytes / 2**30 <= gib
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


def test_gpus_of_a_host_meet_at_a_switch():
    mesh, chip = mesh_of_hosts(2, 8, {"data": 2, "tensor": 8}), find_chip("h100")
    assert group_seconds("all-reduce", 450e9, ("tensor",), chip, mesh) == pytest.approx(1.0)
    assert group_seconds("all-to-all", 450e9, ("tensor",), chip, mesh) == pytest.approx(1.0)


def test_between_hosts_of_gpus_the_network_counts():
    chip = find_chip("h100")
    # two GPUs, one on each host: what one receives comes through its network card of 50 GB/s
    mesh = mesh_of_hosts(2, 8, {"data": 2, "tensor": 8})
    assert group_seconds("all-gather", 50e9, ("data",), chip, mesh) == pytest.approx(1.0)
    # 16 GPUs of two hosts receive 15 parts each: by NVLink 15; of the other host's 8 each card brings one
    mesh = mesh_of_hosts(2, 8, {"fsdp": 16})
    part = 50e9
    assert group_seconds("all-gather", 15 * part, ("fsdp",), chip, mesh) == pytest.approx(15 * part / 450e9)
    part = 2 * 50e9
    mesh = mesh_of_hosts(8, 2, {"fsdp": 16})  # 14 parts are elsewhere, two cards a host
    assert group_seconds("all-gather", 15 * part, ("fsdp",), chip, mesh) == pytest.approx(7 * part / 50e9)
    # rows of an all-to-all are for one GPU each: its own card brings them, from 14 of 15
    assert group_seconds("all-to-all", 15 * part, ("fsdp",), chip, mesh) == pytest.approx(14 * part / 50e9)
    assert group_seconds("collective-permute", part, ("fsdp",), chip, mesh) == pytest.approx(2.0)


def test_a_gpu_is_described_by_its_figures():
    """Against the fields of GpuTargetConfigProto (openxla/xla), read as protobuf's text form writes them."""
    assert set(BOARDS) == {name for name, chip in CHIPS.items() if not chip.torus}
    text = target_config(find_chip("h100"))
    fields = dict(re.findall(r"(\w+): (\S+)", text))
    assert fields["platform_name"] == '"CUDA"'
    assert fields["core_count"] == "132"
    assert fields["device_memory_size"] == "84942979072"
    assert fields["memory_bandwidth"] == "3350000000000"
    assert fields["shared_memory_per_block_optin"] == "232448"  # 227 KiB, CUDA C++ Programming Guide
    assert (fields["major"], fields["feature_extension"]) == ("9", "ACCELERATED_FEATURES")
    for name, board in BOARDS.items():
        text = target_config(find_chip(name))
        assert text.count("{") == text.count("}") == 2
        # float32 operations a second, two an instruction: NVIDIA's data sheets say 19.5, 67, 67 and 75 to 80 teraflops
        peak = 2 * board.cores * board.fpus * board.clock_ghz / 1e3
        assert 0.92 < peak / {"a100": 19.5, "h100": 67, "h200": 67, "b200": 80}[name] < 1.01


def test_without_the_cuda_plugin_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"CUDA plugin, which is not installed: pip install 'qwen3-jax\[gpu-plan\]'"):
        topology_devices(parse_topology("h100:1x8"))
