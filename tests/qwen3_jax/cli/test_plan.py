"""`qwen3-jax plan`: mistakes in one line, and the report, from a program that was not compiled for a TPU here."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.config import YarnConfig
from qwen3_jax.plans.bounds import Bound, bound_of
from qwen3_jax.plans.estimate import estimate
from qwen3_jax.plans.flops import step_flops
from qwen3_jax.plans.report import Request, describe, mesh_text, notes
from qwen3_jax.plans.search import nearest_that_fits
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import MeshConfig, make_mesh, parse_mesh
from qwen3_jax.sharding.ahead_of_time.compile import Buffer, Outcome, abstract, compile_ahead, local_bytes
from qwen3_jax.sharding.ahead_of_time.topology import Topology, parse_topology
from qwen3_jax.train.config import load_config
from tests.support import REPO

ASKED = {
    "--model": "qwen3-0.6b", "--mesh": "fsdp=8", "--topology": "v5e:2x4", "--mode": "train",
    "--sequence-length": "4096", "--batch-size": "8",
}  # fmt: skip

MISTAKES = [
    ({"--model": None}, "--model is needed"),
    ({"--batch-size": None}, "--batch-size is needed"),
    ({"--mesh": None}, "one of --mesh and --search is needed, got neither"),
    ({"--search": ""}, "got both"),
    ({"--mode": "serve"}, "--mode must be train, prefill or decode"),
    ({"--model": "qwen3-06b"}, "did you mean qwen3-0.6b?"),
    ({"--mesh": "fsdp=7"}, "a mesh must use every device"),
    ({"--mesh": "fspd=8"}, "'fspd'"),
    ({"--topology": "v5x:2x4"}, "did you mean v5"),
    ({"--topology": "v5e:8"}, "2 sizes"),
    ({"--topology": "h100:8"}, "hosts x GPUs of a host"),
    ({"--topology": "h100:2x8", "--mesh": "fsdp=8"}, "for 16 devices"),
    ({"--topology": "h100:1x8", "--num-slices": "2"}, "GPUs must have no slices"),
    ({"--batch-size": "0"}, "must be positive"),
    ({"--sequence-length": "many"}, "whole number"),
    ({"--num-slices": "0"}, "must be positive"),
]


@pytest.mark.parametrize(("changes", "says"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_one_line(run, changes, says):
    words = [word for flag, value in (ASKED | changes).items() if value is not None for word in (flag, value) if word]
    ran = run("plan", *words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err


STAGE = "configs/train/stages/3-long.yaml"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "qwen3-8b"], "--model must be left out with --config"),
        (["--sequence-length", "8"], "--sequence-length must be left out with --config"),
        (["--batch-size", "8"], "--batch-size must be left out with --config"),
        (["--search"], "--config must go with --mode train"),
        (["--mode", "decode"], "--config must go with --mode train"),
        (["data.row=8"], "did you mean data.rows?"),
        (["data.rows=100", "data.streams=1"], "data.rows must divide over the 8 devices"),
        (["--mesh", "fsdp=7"], "a mesh must use every device"),
    ],
)
def test_a_mistake_beside_a_training_file_is_one_line(run, words, says, monkeypatch):
    monkeypatch.setattr(
        "qwen3_jax.sharding.ahead_of_time.topology.topology_devices", lambda _: jax.devices()
    )  # without libtpu too
    ran = run("plan", "--config", REPO / STAGE, "--topology", "v5e:2x4", *words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    ran = run("plan", "data.rows=8")
    assert ran.status == 2
    assert "must come with --config" in ran.err


def test_a_training_file_says_what_is_compiled(run, monkeypatch):
    """The file's model, mesh, batch and optimizer, with what `key=value` and --mesh change, and nothing else."""
    asked = []

    def instead(train, mesh):
        asked.append((train, dict(mesh.shape)))
        return Outcome(False, 20 * 2**30, "", (), 1.0), {"parameters": 2**30, "optimizer": 2**31}

    monkeypatch.setattr("qwen3_jax.train.step.plan_run", instead)
    monkeypatch.setattr(
        "qwen3_jax.sharding.ahead_of_time.topology.topology_devices", lambda _: jax.devices()
    )  # without libtpu too
    words = ["data.rows=16", "data.streams=8", "optimizer.name=muon"]
    ran = run("plan", "--config", REPO / STAGE, "--topology", "v5e:2x4", *words, "--mesh", "fsdp=4,context=2", "--json")
    assert ran.status == 0, ran.err
    plan = json.loads(ran.out)
    assert (plan["mode"], plan["sequence_length"], plan["batch_size"]) == ("train", 32768, 16)
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "expert": 1, "context": 2, "tensor": 1}
    (train, shape) = asked[0]
    assert shape == plan["mesh"]
    expected = load_config(REPO / STAGE, words)
    assert train == dataclasses.replace(expected, mesh=MeshConfig(fsdp=4, context=2))
    assert train.remat == "full"


def test_without_libtpu_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    ran = run("plan", *(word for pair in ASKED.items() for word in pair))
    assert (ran.status, ran.out) == (2, "")
    assert "qwen3-jax[tpu-plan]" in ran.err
    assert ran.err.count("\n") == 1


def test_without_the_cuda_plugin_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    ran = run("plan", *(word for pair in (ASKED | {"--topology": "h100:1x8"}).items() for word in pair))
    assert (ran.status, ran.out) == (2, "")
    assert "qwen3-jax[gpu-plan]" in ran.err
    assert ran.err.count("\n") == 1


@pytest.fixture
def request_of_train() -> Request:
    return Request(
        model="qwen3-0.6b",
        config=load_model_config("qwen3-0.6b"),
        mesh=MeshConfig(fsdp=8),
        topology=parse_topology("v5e:2x4"),
        mode="train",
        sequence_length=4096,
        batch_size=8,
    )


def test_the_report_of_a_program(request_of_train):
    """A small program stands in for the step: what is counted in it is what is reported."""
    mesh = make_mesh(fsdp=8)
    spec = NamedSharding(mesh, PartitionSpec("fsdp"))

    def function(x):
        return jax.lax.scan(lambda x, _: (x + jax.lax.psum(x, "fsdp"), None), x, None, length=3)[0]

    local = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec.spec, out_specs=spec.spec, check_vma=False))
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=spec)
    outcome = compile_ahead(local, x)
    assert outcome.fits
    assert local_bytes(x) == 4096
    plan = describe(request_of_train, mesh, outcome, {"parameters": 1000, "optimizer": 2000})
    assert plan["communication_bytes"] == {"all-reduce": 3 * 2 * 4096 * 7 // 8}
    assert plan["communication"] == [{"kind": "all-reduce", "axes": ["fsdp"], "bytes": 21504, "runs": 3}]
    assert plan["communication_source"] == "compiled"
    assert plan["fits"]
    assert plan["hbm_bytes_per_chip"] == 16 * 2**30
    assert plan["peak_bytes_per_chip"] == outcome.peak_bytes
    assert sum(plan["memory"].values()) == max(outcome.peak_bytes, 3000)
    flops = step_flops(request_of_train.config, "train", 4096, 8)
    assert (plan["flops_per_step"], plan["hardware_flops_per_step"]) == (flops.model, flops.hardware)
    assert plan["bound"] == max(plan["seconds"], key=plan["seconds"].get)
    assert plan["notes"] == []
    assert 0 < plan["mfu_without_overlap"] < plan["mfu_bound"] <= 0.76  # at most 3 of 4 passes count
    json.dumps(plan)


def test_a_sequence_beyond_the_context_is_noted(request_of_train):
    def noted(request):
        outcome = Outcome(True, 2**20, "", (), 1.0)
        return describe(request, make_mesh(fsdp=8), outcome, {"parameters": 0, "optimizer": 0})["notes"]

    long = dataclasses.replace(request_of_train, sequence_length=65536)
    assert noted(long) == ["a sequence of 65536 tokens exceeds the model's context of 40960"]
    yarn = YarnConfig(factor=4.0, original_max_position_embeddings=32768)
    assert noted(dataclasses.replace(long, config=dataclasses.replace(long.config, yarn=yarn))) == []


def test_a_program_that_does_not_fit_names_buffers_and_a_mesh(request_of_train):
    outcome = Outcome(False, 20 * 2**30, "", (Buffer(2**30, "f32[8,4]"),), 1.0)
    plan = describe(request_of_train, make_mesh(fsdp=8), outcome, {"parameters": 2**30, "optimizer": 2**31})
    assert not plan["fits"]
    assert plan["peak_bytes_per_chip"] == 20 * 2**30
    assert plan["largest_buffers"] == [{"what": "f32[8,4]", "bytes": 2**30}]
    assert plan["communication_source"] == "estimated"
    assert plan["communication_bytes"].keys() == {"all-gather", "reduce-scatter"}
    assert plan["nearest_mesh"] is not None
    assert plan["nearest_mesh"] != plan["mesh"]
    silent = Outcome(False, None, "", (), 1.0)
    plan = describe(request_of_train, make_mesh(fsdp=8), silent, {"parameters": 2**30, "optimizer": 2**31})
    assert plan["largest_buffers"][0] == {"what": "logits of a chunk", "bytes": 2 * 2048 * 151936 * 4}


def test_on_gpus_a_program_that_was_compiled_may_not_fit(request_of_train):
    """XLA's CUDA compiler refuses nothing: the peak is held against the memory, and what it sends is still compiled."""
    request = dataclasses.replace(request_of_train, topology=parse_topology("h100:1x8"))
    mesh = make_mesh(fsdp=8)
    spec = NamedSharding(mesh, PartitionSpec("fsdp"))
    local = jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, "fsdp"), mesh=mesh, in_specs=spec.spec, out_specs=PartitionSpec())
    )
    found = compile_ahead(local, jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=spec))
    held = {"parameters": 2**30, "optimizer": 2**31}
    memory = request.topology.chip.hbm_bytes

    plan = describe(request, mesh, dataclasses.replace(found, peak_bytes=memory + 1), held)
    assert not plan["fits"]
    assert plan["communication_source"] == "compiled"
    assert plan["communication_bytes"] == {"all-reduce": 2 * 4096 * 7 // 8}
    assert plan["nearest_mesh"] is not None
    assert plan["largest_buffers"]

    plan = describe(request, mesh, dataclasses.replace(found, peak_bytes=int(0.8 * memory)), held)
    assert plan["fits"]
    assert "nearest_mesh" not in plan
    assert any("XLA_PYTHON_CLIENT_MEM_FRACTION to 0.80" in note for note in plan["notes"])
    assert any(note.startswith("attention is XLA's") for note in plan["notes"])
    assert not any("attention" in note for note in notes(request.topology, "decode", memory // 2))


def test_the_nearest_mesh_fits_and_is_near():
    config, topology = load_model_config("qwen3-32b"), parse_topology("v6e:4x4")
    wanted = {"data": 16, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}
    found = nearest_that_fits(config, topology, wanted, "decode", 4096, 16)
    assert found == {"data": 4, "fsdp": 1, "expert": 1, "context": 1, "tensor": 4} or found["data"] > 1
    peak = estimate(config, found, "decode", 4096, 16).peak
    assert peak < topology.chip.hbm_bytes
    assert nearest_that_fits(config, parse_topology("v5e:1x1"), wanted | {"data": 1}, "train", 4096, 1) is None


def test_bounds():
    config, topology = load_model_config("qwen3-8b"), Topology(parse_topology("v5p:2x2x2").chip, (2, 2, 2))
    sizes = {"data": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 1}
    flops = step_flops(config, "train", 4096, 8)
    bound = bound_of(flops, estimate(config, sizes, "train", 4096, 8), 0.0, topology)
    assert bound.name == "compute"
    assert bound.compute == pytest.approx(flops.hardware / (8 * 459e12))
    assert bound.mfu(flops, topology) == pytest.approx(flops.model / flops.hardware)
    assert Bound(1.0, 2.0, 3.0).name == "network"
    decode = step_flops(config, "decode", 4096, 1)
    assert bound_of(decode, estimate(config, sizes, "decode", 4096, 8), 0.0, topology).name == "memory"


def test_a_mesh_as_it_is_written():
    assert mesh_text({"data": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 2}) == "fsdp=8,tensor=2"
    assert mesh_text({"data": 1, "fsdp": 1}) == "data=1"
    text = mesh_text({"expert": 8}, {"embed": None, "vocab": "fsdp"})
    assert text == "expert=8,rules.embed=null,rules.vocab=fsdp"
    assert parse_mesh(text) == MeshConfig(expert=8, rules={"embed": None, "vocab": "fsdp"})


def test_abstract_arrays_keep_their_shapes():
    mesh = make_mesh(fsdp=8)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    tree = abstract({"a": jax.ShapeDtypeStruct((16, 2), jnp.bfloat16)}, {"a": sharding})
    assert (tree["a"].shape, tree["a"].sharding, local_bytes(tree)) == ((16, 2), sharding, 8)
