"""Reading checkpoints: both spellings, single and sharded, both layouts, meshes, dtypes, memory, and every refusal."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax import sharding
from qwen3_jax.checkpoints import stream as loading
from qwen3_jax.checkpoints.files import resolve_checkpoint
from qwen3_jax.checkpoints.load import default_layout, from_pretrained
from qwen3_jax.checkpoints.safetensors import INDEX
from qwen3_jax.parameters.specs import layout_of, restack, unstack
from tests.qwen3_jax.checkpoints.written import BFLOAT16, edit_json, random_tensors, write_checkpoint, write_tensors
from tests.tiny import dense_config, moe_config

DENSE = dense_config(vocab_size=64, num_hidden_layers=3, tie_word_embeddings=False)
TIED = dense_config(vocab_size=64, num_hidden_layers=3)
MIXED = moe_config(vocab_size=64, num_hidden_layers=3, mlp_only_layers=(1,))
CONFIGS = {"dense": DENSE, "tied": TIED, "mixed": MIXED}


def assert_trees_equal(got, expected):
    assert jax.tree.structure(dict(got)) == jax.tree.structure(dict(expected))
    jax.tree.map(np.testing.assert_array_equal, dict(got), dict(expected))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_arrives_at_its_place_in_both_layouts(name, sharded, tmp_path):
    config = CONFIGS[name]
    write_checkpoint(tmp_path, config, max_shard_size=20_000 if sharded else 10**12)
    assert (tmp_path / INDEX).exists() == sharded
    tensors = random_tensors(config)
    model, params = from_pretrained(tmp_path, dtype="float32", layout="unrolled")
    assert model.config == config
    assert layout_of(params) == model.layout == "unrolled"
    np.testing.assert_array_equal(params["embed_tokens"], tensors["model.embed_tokens.weight"])
    assert ("lm_head" in params) == (name == "dense")
    layer = params["layers_2"]
    np.testing.assert_array_equal(layer["q_norm"], tensors["model.layers.2.self_attn.q_norm.weight"])
    np.testing.assert_array_equal(layer["k_norm"], tensors["model.layers.2.self_attn.k_norm.weight"])
    if name == "mixed":
        np.testing.assert_array_equal(layer["router"], tensors["model.layers.2.mlp.gate.weight"])
        for expert in range(config.num_experts):
            expected = tensors[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"]
            np.testing.assert_array_equal(layer["experts_down_proj"][expert], expected)
    model, stacked = from_pretrained(tmp_path, dtype="float32", layout="stacked")
    assert layout_of(stacked) == model.layout == "stacked"
    assert_trees_equal(stacked, restack(params, config))
    assert_trees_equal(unstack(stacked, config), params)


@pytest.mark.parametrize("stored", [np.float32, BFLOAT16, np.float16, np.float64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_values_are_cast_as_numpy_casts_them(stored, dtype, tmp_path):
    write_checkpoint(tmp_path, TIED, stored)
    model, params = from_pretrained(tmp_path, dtype=dtype)
    assert model.param_dtype == jnp.dtype(dtype)
    embedding = params["embed_tokens"]
    assert embedding.dtype == jnp.dtype(dtype)
    expected = random_tensors(TIED, stored)["model.embed_tokens.weight"].astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(embedding), expected)


def test_dtypes_are_taken_by_name_or_as_such(tmp_path):
    write_checkpoint(tmp_path, TIED)
    assert from_pretrained(tmp_path)[1]["norm"].dtype == jnp.bfloat16
    for dtype in (jnp.float32, np.dtype("float32"), "float32"):
        assert from_pretrained(tmp_path, dtype=dtype)[1]["norm"].dtype == jnp.float32
    for dtype in ("int8", "bf16", jnp.int32, 7):
        with pytest.raises(ValueError, match="dtype must be one of bfloat16, float32, float16, got"):
            from_pretrained(tmp_path, dtype=dtype)


def test_the_layout_is_chosen_by_backend(tmp_path):
    assert default_layout() == "unrolled"  # tests run on CPU
    assert from_pretrained(write_checkpoint(tmp_path, TIED))[0].layout == "unrolled"


def test_generation_defaults_come_with_the_model(tmp_path):
    write_checkpoint(tmp_path, TIED)
    edit_json(tmp_path / "config.json", eos_token_id=7, bos_token_id=5)
    generation = from_pretrained(tmp_path)[0].generation
    assert generation.eos_token_ids == (7,)
    assert generation.bos_token_id == 5
    assert generation.temperature is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.6, "top_k": 20}')
    generation = from_pretrained(tmp_path)[0].generation
    assert generation.eos_token_ids == (7, 8)
    assert (generation.temperature, generation.top_k) == (0.6, 20)


def test_a_tied_head_in_the_file_must_equal_the_embedding(tmp_path):
    """The published 0.6B and 1.7B store it."""
    tensors = random_tensors(TIED, BFLOAT16)
    write_checkpoint(tmp_path, TIED)
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    _, params = from_pretrained(tmp_path)
    assert "lm_head" not in params
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2})
    with pytest.raises(ValueError, match=r"lm_head\.weight must equal model\.embed_tokens\.weight .* two different"):
        from_pretrained(tmp_path)


def test_rotary_buffers_of_old_files_are_left_alone(tmp_path):
    write_checkpoint(tmp_path, TIED)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    from_pretrained(write_tensors(tmp_path, random_tensors(TIED) | buffer))


# --- meshes -----------------------------------------------------------------------------------------------------------


def auto_mesh(shape, names):
    axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=axis_types, devices=jax.devices()[: int(np.prod(shape))])


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_on_a_mesh_each_device_holds_its_slice_of_the_same_parameters(layout, on_host, tmp_path, monkeypatch):
    """`on_host` False takes the way of accelerators: layer by layer into a stack on the devices."""
    write_checkpoint(tmp_path, MIXED)
    _, expected = from_pretrained(tmp_path, dtype="float32", layout=layout)
    monkeypatch.setattr(loading, "_shares_host_memory", lambda _: on_host)
    mesh = auto_mesh((2, 2), ("fsdp", "tensor"))
    _, params = from_pretrained(tmp_path, dtype="float32", layout=layout, mesh=mesh)
    assert_trees_equal(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, expected))
    layer = params["segments_1" if layout == "stacked" else "layers_1"]
    *_, out, inner = layer["o_proj"].sharding.shard_shape(layer["o_proj"].shape)
    assert (out, inner) == (MIXED.hidden_size // 2, MIXED.num_attention_heads * MIXED.head_dim // 2)
    assert len(layer["o_proj"].addressable_shards) == 4


def test_two_devices_give_the_logits_of_one(tmp_path):
    write_checkpoint(tmp_path, DENSE)
    tokens = np.arange(10, dtype=np.int32)[None]
    model, params = from_pretrained(tmp_path, dtype="float32", layout="stacked")
    expected = jax.jit(model.apply)({"params": params}, tokens).logits
    mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[:2])
    model, params = from_pretrained(tmp_path, dtype="float32", layout="stacked", mesh=mesh)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {2}
    with jax.set_mesh(mesh):
        got = jax.jit(model.apply)({"params": params}, tokens).logits
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_the_way_of_one_accelerator_gives_the_same_parameters(layout, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, MIXED)
    _, expected = from_pretrained(tmp_path, dtype="float32", layout=layout)
    monkeypatch.setattr(loading, "_shares_host_memory", lambda _: False)
    monkeypatch.setattr(loading, "_WINDOW", 3000)
    assert_trees_equal(from_pretrained(tmp_path, dtype="float32", layout=layout)[1], expected)


def test_a_mesh_that_does_not_divide_a_dimension_is_refused(tmp_path):
    write_checkpoint(tmp_path, TIED)
    message = r"num_attention_heads must divide over 3 devices \(tensor=3\), got 4: choose another mesh"
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path, mesh=auto_mesh((3,), ("tensor",)))


def test_parameters_can_be_donated(tmp_path):
    """They share memory with the buffers they were read into; a donated update must still be right."""
    _, params = from_pretrained(write_checkpoint(tmp_path, TIED), dtype="float32", layout="stacked")
    expected = np.asarray(params["norm"]) + 1
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    np.testing.assert_array_equal(step(params)["norm"], expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def sharded(directory, config=DENSE):
    return write_checkpoint(directory, config, max_shard_size=20_000)


def drop(name):
    def damage(directory):
        write_tensors(directory, {key: value for key, value in random_tensors(DENSE).items() if key != name})

    return damage


def put(name, value):
    return lambda directory: write_tensors(directory, random_tensors(DENSE) | {name: value})


def cut(count):
    def damage(directory):
        data = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(data[:count])

    return damage


def write(name, data):
    return lambda directory: (directory / name).write_bytes(data)


def only(name, data=b"x"):
    def damage(directory):
        (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(data)

    return damage


Q_NORM = "model.layers.1.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (drop(Q_NORM), ValueError, rf"got 1 that differ: {Q_NORM}: expected \[16\], the files have none: correct"),
        (
            put("x.weight", np.ones((2, 3), np.float32)),
            ValueError,
            r"x\.weight: expected none, the files have \[2, 3\]",
        ),
        (put(Q_NORM, np.ones(8, np.float32)), ValueError, rf"{Q_NORM}: expected \[16\], the files have \[8\]"),
        (put(Q_NORM, np.ones(16, np.int8)), ValueError, rf"{Q_NORM}: expected one of F64, .*, the files have I8"),
        (cut(-1), ValueError, r"model\.safetensors must have \d+ bytes, got \d+: cut short"),
        (cut(100), ValueError, r"must hold a header of \d+ bytes, got 92: cut short"),
        (cut(4), ValueError, r"must be a safetensors file, got 4 bytes"),
        (write("model.safetensors", b""), ValueError, r"must be a safetensors file, got 0 bytes"),
        (write("model.safetensors", b"not a safetensors file"), ValueError, "must be a safetensors file"),
        (write("model.safetensors", (6).to_bytes(8, "little") + b"[1, 2]"), ValueError, "header that is not JSON"),
        (only("README.md"), FileNotFoundError, r"must hold model\.safetensors or .*, got no weights"),
        (only("pytorch_model.bin"), FileNotFoundError, r"pytorch_model\.bin, a pickle: convert it"),
        (only("model-q4.gguf"), FileNotFoundError, "got a GGUF file"),
        (only("model-00001-of-00002.safetensors"), FileNotFoundError, "without an index"),
        (only(INDEX, b'{"weight_map": {"a": "gone.safetensors"}}'), FileNotFoundError, r"1 missing: gone\.safetensors"),
        (only(INDEX, b'{"weight_map": {"a": "../a.safetensors"}}'), ValueError, "must name files beside it"),
        (only(INDEX, b'{"weight_map": '), ValueError, "must be JSON"),
        (only(INDEX, b"{}"), ValueError, "must map tensors to files in weight_map"),
        (lambda directory: (directory / "config.json").unlink(), FileNotFoundError, r"config\.json must exist"),
        (write("config.json", b"{"), ValueError, r"config\.json must be JSON"),
        (write("config.json", b'{"model_type": "llama"}'), ValueError, "model_type must be one of .*, got 'llama'"),
        (write("generation_config.json", b"{"), ValueError, r"generation_config\.json must be JSON"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(damage, kind, message, tmp_path):
    damage(write_checkpoint(tmp_path, DENSE))
    with pytest.raises(kind, match=message) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_many_differences_are_counted(tmp_path):
    write_checkpoint(tmp_path, DENSE)
    edit_json(tmp_path / "config.json", hidden_size=64)
    with pytest.raises(
        ValueError, match=r"got \d+ that differ: .*expected \[64, 64\], the files have \[64, 32\].* more"
    ):
        from_pretrained(tmp_path)


def test_a_tensor_in_two_shards_or_in_none_is_refused(tmp_path):
    first, second = sorted(sharded(tmp_path).glob("*.safetensors"))[:2]
    index = json.loads((tmp_path / INDEX).read_text())
    edit_json(tmp_path / INDEX, weight_map=index["weight_map"] | {"ghost": first.name})
    with pytest.raises(ValueError, match="must agree with its files, which lack ghost"):
        from_pretrained(tmp_path)
    edit_json(tmp_path / INDEX, weight_map=index["weight_map"])
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=f"must be in one file, got {first.name} and {second.name}"):
        from_pretrained(tmp_path)


def test_a_value_that_float16_can_not_hold_is_refused_by_name(tmp_path):
    write_checkpoint(tmp_path, TIED)
    tensors = random_tensors(TIED)
    tensors["model.norm.weight"][3] = 1e6
    with pytest.raises(ValueError, match=r"model\.norm\.weight must fit float16"):
        from_pretrained(write_tensors(tmp_path, tensors), dtype="float16")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_what_is_neither_directory_nor_hub_id_is_refused(tmp_path):
    for name in ("./nowhere/here", "/nowhere", "nowhere", tmp_path / "nowhere" / "here"):
        with pytest.raises(FileNotFoundError, match=r"must be a directory or a hub id, got .*: no such directory"):
            resolve_checkpoint(name)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"must be a directory, got the file .*model\.safetensors"):
        resolve_checkpoint(tmp_path / "model.safetensors")


def test_offline_a_hub_id_gives_one_line():
    pytest.importorskip("huggingface_hub")
    with pytest.raises(
        FileNotFoundError, match="nobody/nothing is no directory here, and the hub can not be reached"
    ) as e:
        from_pretrained("nobody/nothing")
    assert "\n" not in str(e.value)


def test_without_huggingface_hub_a_hub_id_gives_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"needs huggingface_hub: pip install 'qwen3-jax\[hub\]'"):
        from_pretrained("Qwen/Qwen3-0.6B")


def test_a_hub_id_is_fetched_without_what_is_not_needed(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot_download(repo_id, allow_patterns):
        asked.update(repo_id=repo_id, allow_patterns=allow_patterns)
        return str(write_checkpoint(tmp_path, TIED))

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    model, _ = from_pretrained("Qwen/Qwen3-0.6B")
    assert model.config == TIED
    assert asked["repo_id"] == "Qwen/Qwen3-0.6B"
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.bin" not in asked["allow_patterns"]


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import gc, json, sys, threading, time
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 4)
from qwen3_jax import sharding
from qwen3_jax.checkpoints.load import from_pretrained

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def load(directory, layout, sizes=None):
    gc.collect()
    base, peak, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    mesh = sharding.make_mesh(**sizes) if sizes else None
    _, params = from_pretrained(directory, layout=layout, mesh=mesh)
    jax.block_until_ready(params)
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    return max(peak[0], anonymous()) - base, sum(leaf.nbytes for leaf in leaves), jnp.bfloat16 == leaves[0].dtype

jnp.zeros(8).block_until_ready()
print(json.dumps([load(*case) for case in json.loads(sys.argv[1])]))
"""


def write_sparse(directory, config, dtype_name, itemsize):
    """A checkpoint of zeros that takes no time to write: the file is a hole behind its header."""
    from qwen3_jax.checkpoints.names import expected_shapes

    write_checkpoint(directory, TIED)
    edit_json(directory / "config.json", **config.to_hf())
    header, end = {}, 0
    for name, shape in expected_shapes(config).items():
        begin, end = end, end + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": dtype_name, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return end, max(int(np.prod(shape)) for shape in expected_shapes(config).values()) * itemsize


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_the_memory_of_the_parameters_and_little_more(tmp_path):
    """Anonymous memory above the baseline stays below 1.15 times the parameters plus one tensor, on more than 1 GB; in
    both layouts, with a cast and without, dense and experts (these in one layout: the suite's time)."""
    sizes = {"hidden_size": 2048, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}
    dense = dense_config(**sizes, intermediate_size=8192, vocab_size=16384, num_hidden_layers=8)
    sparse = moe_config(
        **sizes, num_experts=16, moe_intermediate_size=768, vocab_size=16384, num_hidden_layers=3, intermediate_size=64
    )
    cases, largest = [], []
    for name, config, kind in (("dense", dense, ("BF16", 2)), ("sparse", sparse, ("F32", 4))):
        total, tensor = write_sparse(tmp_path / name, config, *kind)
        assert total > 1_000_000_000
        cases += [(str(tmp_path / name), "unrolled"), (str(tmp_path / name), "stacked")]
        largest += [tensor, tensor]
    cases, largest = cases[:3], largest[:3]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)], capture_output=True, text=True, check=True, timeout=300
    )
    for case, tensor, (peak, loaded, is_bfloat16) in zip(cases, largest, json.loads(found.stdout), strict=True):
        assert is_bfloat16
        assert loaded > 0.5e9, case
        assert peak > 0.99 * loaded, case
        assert peak <= 1.15 * loaded + tensor, case


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_onto_a_mesh_takes_no_more(tmp_path):
    """Each of four devices gets its slice and nothing else: together the parameters, and at most one tensor beside."""
    sizes = {"hidden_size": 2048, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}
    config = dense_config(**sizes, intermediate_size=8192, vocab_size=16384, num_hidden_layers=8)
    total, tensor = write_sparse(tmp_path, config, "BF16", 2)
    cases = [(str(tmp_path), "stacked", {"fsdp": 2, "tensor": 2})]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)], capture_output=True, text=True, check=True, timeout=300
    )
    ((peak, loaded, _),) = json.loads(found.stdout)
    assert loaded == total > 1_000_000_000
    assert 0.99 * loaded < peak <= 1.15 * loaded + tensor


def test_loaded_values_do_not_follow_the_file(tmp_path):
    """They are copies: a file that is overwritten later changes nothing."""
    _, params = from_pretrained(write_checkpoint(tmp_path, TIED), dtype="float32")
    before = np.array(params["embed_tokens"])
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    np.testing.assert_array_equal(params["embed_tokens"], before)
