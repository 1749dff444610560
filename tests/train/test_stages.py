"""The three stages of pretraining: full-size files are the report's, and trace; small ones run one after another."""

import dataclasses
import json
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import named_sharding
from qwen3_jax.text.tokenizer import load_tokenizer
from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.data import Batch, make_data
from qwen3_jax.train.pocket.corpus import CorpusConfig, write_corpus
from qwen3_jax.train.run import run
from qwen3_jax.train.state import abstract_state
from qwen3_jax.train.step import make_model, make_step
from tests import tiny
from tests.support import REPO

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
@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_full_stage_finds_its_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as it stands there, with a small corpus, down to batches to train on and to evaluate; what is made
    smaller is the model, the batch and, for so few documents, a larger share that is held out."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split((STAGES / f"{name}.yaml").read_text().splitlines()[0])
    assert words[1:4] == ["qwen3-jax", "train", f"configs/train/stages/{name}.yaml"]
    config = load_config(STAGES / f"{name}.yaml", words[4:])
    assert config.evaluation.every
    assert config.data.held_out
    rng, domains = np.random.default_rng(0), [weight.labels["domain"] for weight in config.data.mixture.weights]
    folder = tmp_path / Path(config.data.sources[0].path).parent
    folder.mkdir()
    texts = ["".join(rng.choice(list("abcdefgh "), 60)) for _ in range(200)]
    table = {"text": texts, "domain": [domains[i % len(domains)] for i in range(200)], "language": ["en"] * 200}
    parquet.write_table(pyarrow.table(table), folder / "part.parquet")
    small = dataclasses.replace(
        config.data,
        rows=8,
        length=128,
        streams=2,
        held_out=0.2,
        cache=str(tmp_path / "cache"),
        lengths=tuple(dataclasses.replace(part, minimum=1, maximum=128) for part in config.data.lengths[:1]),
    )
    config = dataclasses.replace(config, data=small)
    data = make_data(config, load_tokenizer(tiny.write_tokenizer(tmp_path / "tokenizer")))
    assert set(data.domain_names) == set(domains)
    held_out = [share.place(None) for share in data.held_out(range(2))]
    assert held_out[0].loss_mask.any()
    share, _ = next(data.batches(range(2), None))
    assert share.place(None).tokens.shape == (8, 128)


@pytest.mark.filterwarnings("ignore:the held-out batches")  # of a corpus so small
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
            "evaluation.every=2",
            "evaluation.batches=1",
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
