"""The search: finds the mixture of a known law through the command, proposes nothing on noise, goes on when stopped."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import qwen3_jax.train.mixture.proxy as proxy_module
import qwen3_jax.train.mixture.search as search_module
from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.config import TrainConfig, load_config
from qwen3_jax.train.data import Example
from qwen3_jax.train.initial import make_tokenizer
from qwen3_jax.train.mixture.labels import target_shares
from qwen3_jax.train.mixture.proxy import held_out_loss, held_out_sets, natural_tokens
from qwen3_jax.train.mixture.search import gained, search, verdict_line
from qwen3_jax.train.mixture.settings import MixtureSearch, load_search
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.pocket.corpus import CorpusConfig, write_corpus
from tests import tiny
from tests.qwen3_jax.cli.conftest import run as run  # the fixture

MODEL = {
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
SHARES = {"math": 1.0, "state": 1.0, "story": 2.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    config = CorpusConfig(
        documents=120, held_out=12, max_characters=200, domains=SHARES, qualities={"clean": 1}, languages={"en": 1}
    )
    write_corpus(config, directory)
    return directory


def values(corpus: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "run_dir": str(run_dir),
        "by": ["domain"],
        "proxies": 12,
        "natural_proxies": 1,
        "proxy": {"steps": 2, "optimizer": {"warmup_steps": 1}},
        "train": {
            "steps": 20,
            "model": MODEL,
            "tokenizer": {"vocab_size": 320, "corpus_size": 40},
            "data": {"rows": 4, "length": 64, "sources": [{"path": str(corpus / "train.jsonl")}], "threads": 0},
            "evaluation": {"sources": [{"path": str(corpus / "held_out.jsonl")}]},
            "optimizer": {"warmup_steps": 5},
        },
    }
    return {**result, **changes}


def asked(corpus: Path, run_dir: Path, **changes: Any) -> MixtureSearch:
    made = parse(MixtureSearch, values(corpus, run_dir, **changes))
    assert isinstance(made, MixtureSearch)
    return made


def shares_of_config(config: TrainConfig) -> dict[str, float]:
    found = target_shares(config.data.mixture.by, config.data.mixture.weights)
    return {domain: share for (domain,), share in found.items()}


def known_losses(config: TrainConfig) -> dict[str, float]:
    """A loss for each domain that falls with its share: math and state are learnt slowly, stories at once."""
    share = shares_of_config(config)
    seed = np.random.default_rng([config.seed, config.steps])
    slopes = {"math": 3.0, "state": 2.0, "story": 0.3}
    return {
        f"domain={name}": 1 + float(np.exp(-slope * share.get(name, 0.0))) + 0.003 * seed.normal()
        for name, slope in slopes.items()
    }


def noise(config: TrainConfig) -> dict[str, float]:
    seed = np.random.default_rng([config.seed, config.steps, 1])
    return {f"domain={name}": float(seed.normal(2.0, 0.1)) for name in SHARES}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`pretend(losses)`: runs are not trained, their losses are a function of their configuration."""

    def use(losses: Any) -> None:

        def runs(config: TrainConfig, *_: Any) -> dict[str, float]:
            print("step 1  loss 2.0")  # as a training run does
            result: dict[str, float] = losses(config)
            return result

        monkeypatch.setattr(search_module, "train_and_measure", runs)

    return use


def test_the_mixture_of_a_known_law_is_found_and_its_configuration_trains(corpus, tmp_path, pretend, run) -> None:
    pretend(known_losses)
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values(corpus, tmp_path / "run")), encoding="utf-8")
    ran = run("mixture", path, "verify_seeds=3", "--report", tmp_path / "page.md", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["verdict"] == "confirmed"
    assert found["check"]["low"] > 0

    def mean(shares: dict[str, float]) -> float:
        """Of the law without noise."""
        return float(
            np.mean([np.exp(-3 * shares["math"]), np.exp(-2 * shares["state"]), np.exp(-0.3 * shares["story"])])
        )

    config = load_config(tmp_path / "run" / "train.yaml", [f"run_dir={tmp_path / 'final'}"])
    fitted = shares_of_config(config)
    assert sum(fitted.values()) == pytest.approx(1.0, abs=1e-5)
    shares = np.array([one["shares"] for one in found["proxies"]])  # no share leaves the range that proxies had
    grid = [np.array([a, b, 200 - a - b]) / 200 for a in range(201) for b in range(201 - a)]
    allowed = [point for point in grid if (point >= shares.min(0)).all() and (point <= shares.max(0)).all()]
    assert mean(fitted) - min(mean(dict(zip(SHARES, point, strict=True))) for point in allowed) < 0.005
    natural = {entry["labels"]["domain"]: entry["natural"] for entry in found["combinations"]}
    assert mean(natural) - mean(fitted) == pytest.approx(found["check"]["gain"], abs=0.006)
    assert Path(config.tokenizer.path).is_dir()
    overlay = yaml.safe_load((tmp_path / "run" / "overlay.yaml").read_text())
    assert overlay["data"]["mixture"]["by"] == ["domain"]
    page = (tmp_path / "page.md").read_text()
    assert "**The fit holds" in page
    assert "confirm a gain" in page
    assert (tmp_path / "page.png").stat().st_size > 1000
    assert json.loads((tmp_path / "run" / "report.json").read_text())["says"] == found["says"]


def test_noise_proposes_nothing_and_says_so(corpus, tmp_path, pretend, run) -> None:
    pretend(noise)
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values(corpus, tmp_path / "run", verify_seeds=2)), encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.yaml").write_text("of an earlier start")
    ran = run("mixture", path)
    assert ran.status == 0
    assert "No mixture is proposed: the proxies' loss does not follow the mixture" in ran.out
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"report.md", "search.json"} <= names
    assert not {"train.yaml", "overlay.yaml"} & names
    assert "**No mixture is proposed" in (tmp_path / "run" / "report.md").read_text()


def test_a_mixture_that_real_runs_find_worse_is_not_left_as_a_configuration(corpus, tmp_path, pretend) -> None:
    """The real run differs from its proxies: what helped them harms it."""

    def losses(config: TrainConfig) -> dict[str, float]:
        sign = 1 if config.steps == 2 else -1
        return {name: 2 + sign * (loss - 2) for name, loss in known_losses(config).items()}

    pretend(losses)
    found = search(asked(corpus, tmp_path / "run", verify_seeds=3), say=lambda _: None)
    assert found.verdict == "worse"
    assert "worse" in verdict_line(found)
    assert not (tmp_path / "run" / "train.yaml").exists()


def test_no_combination_is_repeated_more_than_asked(corpus, tmp_path, pretend) -> None:
    pretend(known_losses)
    free = search(asked(corpus, tmp_path / "free", max_epochs=100.0), say=lambda _: None)
    config = asked(corpus, tmp_path / "bound")
    epochs = [free.best * config.final_tokens / np.array(free.tokens)]
    limit = float(epochs[0].max()) * 0.8
    bound = search(dataclasses.replace(config, max_epochs=limit), say=lambda _: None)
    epochs += [shares * config.final_tokens / np.array(bound.tokens) for shares in (bound.best, bound.shares)]
    assert max(each.max() for each in epochs[1:]) <= limit * (1 + 1e-6)
    assert bound.verdict == free.verdict == "predicted"


def test_proxies_train_and_a_search_that_was_stopped_does_not_do_them_again(corpus, tmp_path, monkeypatch) -> None:
    """Real runs of two steps; stopped in the third proxy."""
    config = asked(corpus, tmp_path / "run", proxies=4)
    real, trained = proxy_module.run, []

    def stops(one: TrainConfig) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(Path(one.run_dir).name)
        return real(one)

    monkeypatch.setattr(proxy_module, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        search(config, say=lambda _: None)

    def goes_on(one: TrainConfig) -> Any:
        trained.append(Path(one.run_dir).name)
        return real(one) if len(trained) == 3 else tmp_path / "run" / "proxies" / "002" / "model"  # three are enough

    monkeypatch.setattr(proxy_module, "run", goes_on)
    found = search(config, say=lambda _: None)
    assert trained == ["000", "001", "002", "003", "004"]
    assert found.losses.shape == (5, 3)
    assert np.isfinite(found.losses).all()
    assert (np.abs(found.losses - np.log(320)) < 1.5).all()  # after two steps: near that of a guess
    again = search(config, say=lambda _: None)
    np.testing.assert_array_equal(again.losses, found.losses)
    assert len(trained) == 5
    with pytest.raises(ValueError, match="got one that differs in seed"):
        search(dataclasses.replace(config, seed=1), say=lambda _: None)


def test_held_out_loss_is_that_of_each_document_alone() -> None:
    config, rng = tiny.dense_config(vocab_size=64), np.random.default_rng(0)
    params, model = tiny.random_params(config, "unrolled"), Qwen3(config, layout="unrolled")
    documents = [rng.integers(1, 64, size).tolist() for size in (20, 3, 13, 17, 9, 2)]
    examples = [Example(tokens=tokens, loss=[True] * len(tokens)) for tokens in documents]
    forward = jax.jit(lambda tokens, mask: model.apply({"params": params}, tokens, attention_mask=mask).logits)
    total = 0.0
    for tokens in documents:
        padded = jnp.asarray([tokens + [0] * (20 - len(tokens))])
        logits = forward(padded, jnp.arange(20)[None] < len(tokens))[0]
        losses = -jax.nn.log_softmax(logits)[np.arange(len(tokens) - 1), np.array(tokens[1:])]
        total += float(losses.sum())
    expected = total / sum(len(tokens) - 1 for tokens in documents)
    assert held_out_loss(model, params, examples, rows=2, length=20) == pytest.approx(expected, rel=1e-5)


def test_tokens_and_held_out_sets_come_from_the_labels(corpus, tmp_path) -> None:
    config = asked(corpus, tmp_path)
    data = dataclasses.replace(config.train.data, cache=str(tmp_path / "cache"))
    tok = make_tokenizer(tmp_path / "tokenizer", dataclasses.replace(config.train, data=data))
    records = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = natural_tokens(data, tok, ("domain",))
    for domain in SHARES:
        texts = [record["text"] for record in records if record["labels"]["domain"] == domain]
        assert counts[(domain,)] == pytest.approx(sum(len(tok.encode(text)) for text in texts), rel=0.02)
    sets = held_out_sets(config.train.evaluation.sources, tok, (), data)
    assert [each.name for each in sets] == [f"domain={domain}" for domain in sorted(SHARES)]
    assert all(len(example.tokens) <= 64 for each in sets for example in each.examples)
    weighted = parse(MixtureSearch, values(corpus, tmp_path, target=[{"labels": {"domain": "poem"}}])).target
    with pytest.raises(ValueError, match="target domain=poem must match"):
        held_out_sets(config.train.evaluation.sources, tok, weighted, data)


def test_gain_is_a_paired_difference_with_students_interval() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, n 3: 2 +- 4.303 / sqrt(3). One pair says nothing."""
    found = gained([5.0, 6.0, 7.0], [4.0, 4.0, 4.0])
    assert found == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-4)
    assert gained([3.0, 2.0], [2.0, 1.0]) == (1.0, 1.0, 1.0)
    assert gained([3.0], [2.0]) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["run_dir=''"], "run_dir must be set"),
        (["by=[]"], "by must name the labels"),
        (["proxies=2"], "at least 4 proxies"),
        (["concentration=[2]"], "concentration must be"),
        (["verify_seeds=1"], "verify_seeds 0 or at least 2"),
        (["max_epochs=0.01"], "raise max_epochs or take more data"),
        (["proxis=5"], "did you mean proxies?"),
        (["proxy.stepz=5"], "did you mean steps?"),
        (["train.evaluation.sources=[]"], "train.evaluation.sources must name"),
        (["by=[topic]"], "label 'topic'"),
        (["train.data.mixture={by: [domain], weights: [{labels: {domain: math}}]}"], "must be left out"),
        (["steps"], "must be key=value"),
    ],
)
def test_a_mistake_is_one_line(corpus, tmp_path, run, changes, says) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values(corpus, tmp_path / "run")), encoding="utf-8")
    ran = run("mixture", path, *changes)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err


def test_the_example_is_a_search() -> None:
    from qwen3_jax.paths import configs_path

    config = load_search(configs_path() / "mixture" / "example.yaml")
    assert config.by == ("domain", "quality")
    with pytest.raises(FileNotFoundError, match="configs/mixture"):
        load_search("none.yaml")
