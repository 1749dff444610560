"""`qwen3-jax plan` as it is typed, of a small model: its numbers against sums done by hand."""

import json

import pytest

from qwen3_jax.cli import main
from tests.tiny import dense_config

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 256, 512, 8, 4, 128, 1024
MATRICES = LAYERS * HIDDEN * (2 * (HEADS + KV_HEADS) * HEAD_DIM + 3 * INNER)
HEAD = VOCAB * HIDDEN
NORMS = LAYERS * (2 * HIDDEN + 2 * HEAD_DIM) + HIDDEN
PER_PAIR = 4 * LAYERS * HEADS * HEAD_DIM  # FLOPs of a query and a key, in scores and in the sum of values


@pytest.fixture
def plan(tmp_path, capsys):
    """`plan("train", "v5e:2x2", 256, 8, "--mesh", "fsdp=4")`: what the command prints with --json."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
    model = tmp_path / "config.json"
    model.write_text(json.dumps(dense_config(**sizes, **heads).to_hf()))

    def call(mode, topology, length, batch, *words):
        asked = ["--mode", mode, "--topology", topology, "--sequence-length", str(length), "--batch-size", str(batch)]
        assert main(["plan", "--model", str(model), *asked, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_prefill(plan):
    length, rows = 1000, 4
    found = plan("prefill", "v5e:2x2", length, rows, "--mesh", "tensor=4")
    assert found["fits"]
    assert found["memory"]["parameters"] == pytest.approx(2 * (MATRICES + HEAD) / 4 + 2 * NORMS, rel=1e-3)
    assert found["memory"]["cache"] == pytest.approx(2 * 2 * LAYERS * rows * 1024 * HEAD_DIM, rel=0.01)  # one head each
    assert found["flops_per_step"] == rows * (
        2 * MATRICES * length + 2 * HEAD + PER_PAIR * length * (length + 1) // 2  # logits of the last token only
    )
    # Two chunks of 512. The embedding and two products a layer leave partial sums: all-reduces over four chips.
    chunk = 2 * rows * 512 * HIDDEN
    assert found["communication_bytes"] == {"all-reduce": 2 * (2 * LAYERS + 1) * 2 * chunk * 3 // 4}
    assert found["communication"][0]["axes"] == ["tensor"]


def test_training_on_two_slices(plan):
    length, rows = 256, 8
    found = plan("train", "v5e:2x2", length, rows, "--mesh", "data=2,fsdp=4", "--num-slices", "2")
    assert found["fits"]
    assert (found["num_slices"], found["chips"]) == (2, 8)
    assert found["flops_per_step"] == 3 * rows * (
        2 * (MATRICES + HEAD) * length + PER_PAIR * length * (length + 1) // 2
    )
    held = (MATRICES + HEAD) / 4 + NORMS  # parameters of a chip: whole in each slice
    assert found["memory"]["parameters"] == pytest.approx(4 * held, rel=1e-3)
    # Between the slices goes the sum of the gradients: half of them there, half of the sum back, in 16 or 32 bits.
    between = [row for row in found["communication"] if row["axes"] == ["slices"]]
    assert [row["kind"] for row in between] == ["send"]
    assert 2 * held * 0.99 < between[0]["bytes"] < 4 * held
    assert all(row["axes"] == ["fsdp"] for row in found["communication"] if row not in between)
    # Forward and backward pass gather each layer, the loss the head, in bfloat16: three quarters come from the others.
    assert found["communication_bytes"]["all-gather"] >= 2 * (2 * MATRICES + HEAD) * 3 // 4
    assert found["bound"] == "network"


def test_search(plan):
    rows, length = 4, 512
    found = plan("decode", "v5e:2x2", length, rows, "--search")
    # Of 4 devices over data, fsdp and tensor (one row a device at most; `expert` and `context` are not for this).
    assert len(found["search"]) == 6
    assert len(found["compiled"]) == 3
    assert all(each["fits"] and each["communication_source"] == "compiled" for each in found["compiled"])
    times = [sum(each["seconds"].values()) for each in found["compiled"]]
    assert sum(found["seconds"].values()) == min(times)
    assert found["mesh"] == found["compiled"][times.index(min(times))]["mesh"]
    assert found["flops_per_step"] == rows * (2 * (MATRICES + HEAD) + PER_PAIR * length)
    best = found["compiled"][0]  # by the analytic model: nothing is gathered, every chip reads a quarter
    assert best["mesh"] == {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 4}
    sums = 2 * LAYERS + 1  # the embedding and two a layer
    assert best["communication_bytes"] == {
        "all-reduce": sums * 2 * 2 * rows * HIDDEN * 3 // 4,
        "all-gather": 4 * rows * VOCAB * 3 // 4,  # float32 logits
    }
