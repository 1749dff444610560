"""The three stages of pretraining: full-size files are the report's, and trace; small ones run one after another."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.checkpoint import from_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.model_configs import load_model_config
from sharding import named_sharding
from tests.support import REPO
from train.config import TrainConfig, load_config
from train.data import Batch
from train.mixture.corpus import CorpusConfig, write_corpus
from train.run import run
from train.state import abstract_state
from train.step import make_model, make_step

STAGES = REPO / "configs" / "train" / "stages"
NAMES = ("1-general", "2-reasoning", "3-long")
FULL = {name: load_config(STAGES / f"{name}.yaml") for name in NAMES}
SMALL = {name: load_config(STAGES / "small" / f"{name}.yaml") for name in NAMES}


def test_the_full_stages_are_those_of_the_report() -> None:
    """Sequence lengths, RoPE's base and the mix of lengths: arXiv 2505.09388, section 3.2."""
    assert [FULL[name].data.length for name in NAMES] == [4096, 4096, 32768]
    assert [FULL[name].model["rope_theta"] for name in NAMES] == [1e4, 1e4, 1e6]
    tokens = [FULL[name].steps * FULL[name].data.rows * FULL[name].data.length for name in NAMES]
    assert tokens == pytest.approx([30e12, 5e12, 0.42e12], rel=0.03)
    shares = [(part.share, part.minimum, part.maximum) for part in FULL["3-long"].data.lengths]
    assert shares == [(0.75, 16385, 32768), (0.25, 4096, 16384)]
    release = load_model_config("qwen3-8b").to_hf()
    changed = {"rope_theta", "max_position_embeddings"}
    for config in FULL.values():
        assert {key for key in release if config.model[key] != release[key]} <= changed


@pytest.mark.parametrize("stages", [FULL, SMALL], ids=["full", "small"])
def test_reasoning_has_more_stem_and_code_and_decays_faster(stages: dict[str, TrainConfig]) -> None:
    def share(config: TrainConfig, *domains: str) -> float:
        weights = config.data.mixture.weights
        wanted = sum(part.weight for part in weights if part.labels["domain"] in domains)
        return wanted / sum(part.weight for part in weights)

    first, second = stages["1-general"], stages["2-reasoning"]
    for domains in (("stem", "math"), ("code",)):
        assert share(second, *domains) > 1.5 * share(first, *domains)
    assert second.optimizer.final_share < first.optimizer.final_share
    ends = [config.optimizer.learning_rate * config.optimizer.final_share for config in stages.values()]
    assert second.optimizer.learning_rate == pytest.approx(ends[0])  # it goes on where the first ends
    assert ends == sorted(ends, reverse=True)


@pytest.mark.parametrize(
    ("name", "base"),
    [*((name, "qwen3-8b") for name in NAMES), ("1-general", "qwen3-30b-a3b"), ("3-long", "qwen3-0.6b")],
)
def test_a_full_stage_traces_on_a_mesh(name: str, base: str) -> None:
    """Shapes and shardings of the whole step, without an array: what `plan` then compiles."""
    config = load_config(STAGES / f"{name}.yaml", [f"model.base={base}"])
    mesh = config.mesh.build()
    model = make_model(config, mesh)
    assert ModelConfig.from_hf(config.model).num_hidden_layers == load_model_config(base).num_hidden_layers
    state = abstract_state(model, config, mesh)
    layout = named_sharding(mesh, ("batch", "sequence"), model.placement.rules)
    shape = (config.data.rows, config.data.length)
    fields = dict.fromkeys(("tokens", "targets", "segment_ids", "domains"), jnp.int32) | {"loss_mask": jnp.bool_}
    batch = Batch(**{key: jax.ShapeDtypeStruct(shape, kind, sharding=layout) for key, kind in fields.items()})
    step = make_step(model, config, mesh)
    with jax.set_mesh(mesh):
        after = jax.eval_shape(lambda state, batch: jax.tree.leaves(step(state, batch)[0]), state, batch)
    assert [leaf.shape for leaf in after] == [leaf.shape for leaf in jax.tree.leaves(state)]


@pytest.mark.filterwarnings("ignore:.*documents are left out")  # the long stage takes no short ones
def test_the_small_stages_run_one_after_another(tmp_path: Path) -> None:
    corpus = write_corpus(CorpusConfig(documents=400, held_out=20), tmp_path / "corpus")
    last = ""
    for name in NAMES:
        directory = tmp_path / name
        overrides = [
            f"run_dir={directory}",
            f"data.sources=[{{path: {corpus['train']}}}]",
            f"evaluation.sources=[{{path: {corpus['held_out']}}}]",
            f"data.cache={tmp_path / 'cache'}",
            "tokenizer.corpus_size=300",
            "evaluation.every=0",
            "optimizer.warmup_steps=1",
            "steps=2",
        ]
        if last:
            overrides.append(f"init_from={last}")
        done = run(load_config(STAGES / "small" / f"{name}.yaml", overrides))
        assert done == directory / "model"
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        last = str(directory)
    model, _ = from_pretrained(tmp_path / "3-long" / "model", dtype="float32")
    assert (model.config.rope_theta, model.config.max_position_embeddings) == (1e6, 1024)
    before, _ = from_pretrained(tmp_path / "2-reasoning" / "model", dtype="float32")
    assert before.config.rope_theta == 1e4
    first = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"] for name in NAMES]
    assert first[1] < first[0] - 0.1  # a later stage begins with what the last one learnt
