"""The search for a mixture: natural shares, proxies, fit, optimum, and the check by runs of the real configuration."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float

from qwen3_jax.files import written_beside
from qwen3_jax.train.initial import make_tokenizer
from qwen3_jax.train.mixture.fit import MAX_P, MIN_R2, Fit, best_mixture, draw_mixtures, fit, within
from qwen3_jax.train.mixture.labels import Combination, as_weights, shares_of
from qwen3_jax.train.mixture.proxy import HeldOutSet, held_out_sets, natural_tokens, train_and_measure, with_mixture
from qwen3_jax.train.mixture.settings import MixtureSearch, changed
from qwen3_jax.train.parsing import merge, to_dict
from qwen3_jax.train.statistics import mean_interval

Verdict = Literal["no fit", "no gain predicted", "predicted", "confirmed", "not confirmed", "worse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Runs of the real configuration with either mixture, seed by seed.

    Attributes:
      natural, fitted: seed by seed and held-out set by held-out set, nats a token.
      gain: mean over seeds of the objective with the natural mixture less that with the fitted one.
      low, high: 95% confidence interval of the gain (paired t).
    """

    natural: tuple[dict[str, float], ...]
    fitted: tuple[dict[str, float], ...]
    gain: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
      by: labels of a combination.
      combinations: in the order of all shares below.
      tokens: that the files have of each.
      natural, best: shares; `best` is None where the fit does not hold or promises nothing.
      shares, losses: of every proxy, the natural ones first; losses by held-out set.
      sets: held-out sets, name -> weight.
      fit: the laws.
      predicted_natural, predicted_best: objective, nats a token.
      seed_spread: standard deviation of the objective between natural proxies, None with one of them.
      check: the real runs, when asked for.
      verdict: in a word.
    """

    by: tuple[str, ...]
    combinations: tuple[Combination, ...]
    tokens: tuple[int, ...]
    natural: Float[np.ndarray, " C"]
    best: Float[np.ndarray, " C"] | None
    shares: Float[np.ndarray, "N C"]
    losses: Float[np.ndarray, "N K"]
    sets: dict[str, float]
    fit: Fit
    predicted_natural: float
    predicted_best: float | None
    seed_spread: float | None
    check: Check | None
    verdict: Verdict


def search(config: MixtureSearch, say: Callable[[str], None] = print) -> Found:
    """Runs or goes on with a search in `config.run_dir`; proxies that are done are read, not trained again.

    Writes, when the fit holds, promises a lower loss and was not found worse: `overlay.yaml`
    (data.mixture alone) and `train.yaml` (`train` with it, for `qwen3-jax train`).

    Raises:
      ValueError: no run_dir, or it holds another search; labels that are not there; bounds without room.
      SystemExit: 143 when a run was asked to stop.
    """
    if not config.run_dir:
        raise ValueError("run_dir must be set, got nothing: add run_dir=DIR to the command")
    run_dir = Path(config.run_dir)
    _claim(run_dir, config)
    base = changed(config.train, {"data": {"cache": str(run_dir / "cache")}})
    tok = make_tokenizer(run_dir / "tokenizer", base)
    base = changed(base, {"tokenizer": {"path": str(run_dir / "tokenizer")}})
    proxy = changed(base, config.proxy)
    counts = natural_tokens(base.data, tok, config.by)
    held_out = held_out_sets(base.evaluation.sources, tok, config.target, proxy.data)
    natural = np.array(list(shares_of(counts).values()))
    most = np.minimum(1.0, config.max_epochs * np.array(list(counts.values())) / config.final_tokens)
    drawn = draw_mixtures(natural, config.proxies, config.concentration, most, np.random.default_rng((config.seed, 3)))
    shares = np.concatenate([np.tile(within(natural, 0 * most, most), (config.natural_proxies, 1)), drawn])
    losses = []
    for number, row in enumerate(shares):
        mixture = dict(zip(counts, row, strict=True))
        changes = {"run_dir": str(run_dir / "proxies" / f"{number:03d}"), "seed": config.seed + number}
        one = changed(with_mixture(proxy, config.by, mixture), changes)
        losses.append(list(train_and_measure(one, held_out).values()))
        say(f"proxy {number + 1} of {len(shares)}: loss {_objective(losses[-1], held_out):.4f}")
    found = conclude(config, counts, shares, np.array(losses), {each.name: each.weight for each in held_out})
    if found.best is not None and config.verify_seeds:
        found = _checked(config, base, held_out, found, say)
    _write_configs(run_dir, config, found)
    return found


def conclude(
    config: MixtureSearch,
    counts: Mapping[Combination, int],
    shares: Float[np.ndarray, "N C"],
    losses: Float[np.ndarray, "N K"],
    sets: dict[str, float],
) -> Found:
    """Fit, judgement and optimum, from what the proxies gave.

    The optimum stays within `max_epochs` and within the range of each share that some proxy had. It counts as found
    when the fit holds and the gain it predicts over the natural mixture exceeds the fit's leave-one-out error.
    """
    natural, tokens = shares[0], np.array(list(counts.values()))
    fitted = fit(shares, losses, list(sets.values()), config.seed)
    most = np.minimum(shares.max(0), config.max_epochs * tokens / config.final_tokens)
    best = best_mixture(fitted, shares, shares.min(0), np.maximum(most, shares.min(0)))
    before, after = float(fitted.predict(natural)), float(fitted.predict(best))
    verdict: Verdict = "predicted"
    if not fitted.holds:
        verdict = "no fit"
    elif before - after <= fitted.rmse:
        verdict = "no gain predicted"
    spread = losses[: config.natural_proxies] @ fitted.weights
    return Found(
        by=config.by,
        combinations=tuple(counts),
        tokens=tuple(int(n) for n in tokens),
        natural=natural,
        best=best if verdict == "predicted" else None,
        shares=shares,
        losses=losses,
        sets=sets,
        fit=fitted,
        predicted_natural=before,
        predicted_best=after if verdict == "predicted" else None,
        seed_spread=float(np.std(spread, ddof=1)) if len(spread) > 1 else None,
        check=None,
        verdict=verdict,
    )


def verdict_line(found: Found) -> str:
    """What may be said of the result, in a sentence."""
    worth = f"leave-one-out R2 {found.fit.r2:.2f}, p {found.fit.p_value:.3f}"
    if found.verdict == "no fit":
        return (
            f"No mixture is proposed: the proxies' loss does not follow the mixture well enough ({worth}; needed: "
            f"{MIN_R2} and {MAX_P}). Train more or longer proxies, or group the labels more coarsely."
        )
    if found.verdict == "no gain predicted":
        return (
            f"No mixture is proposed: the fit holds ({worth}) but promises no more than its own error of "
            f"{found.fit.rmse:.4f} nats over the natural mixture."
        )
    assert found.predicted_best is not None
    promised = found.predicted_natural - found.predicted_best
    line = f"The fit holds ({worth}) and predicts {promised:.4f} nats less than the natural mixture for a proxy."
    if found.check is None:
        return f"{line} It was not checked by runs of the real configuration (verify_seeds)."
    check = found.check
    measured = f"{check.gain:+.4f} nats, 95% interval {check.low:+.4f} to {check.high:+.4f}"
    ends = {
        "confirmed": f"Runs of the real configuration confirm a gain: {measured}.",
        "not confirmed": f"Runs of the real configuration do not confirm a gain: {measured} includes none.",
        "worse": f"Runs of the real configuration show the fitted mixture to be worse: a gain of {measured}.",
    }
    return f"{line} {ends[found.verdict]}"


def gained(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean of before minus after, pair by pair, and the ends of its 95% confidence interval, which are infinitely far
    for a single pair."""
    interval = mean_interval(np.subtract(before, after).tolist())
    assert interval is not None, "there are pairs"
    half = math.inf if interval.half is None else interval.half
    return interval.mean, interval.mean - half, interval.mean + half


def _checked(
    config: MixtureSearch, base: Any, held_out: Sequence[HeldOutSet], found: Found, say: Callable[[str], None]
) -> Found:
    assert found.best is not None
    runs: dict[str, list[dict[str, float]]] = {"natural": [], "fitted": []}
    for number in range(config.verify_seeds):
        for name, row in (("natural", found.natural), ("fitted", found.best)):
            mixture = dict(zip(found.combinations, row, strict=True))
            directory = Path(config.run_dir) / "check" / f"{name}-{number}"
            changes = {"run_dir": str(directory), "seed": config.train.seed + number}
            one = changed(with_mixture(base, config.by, mixture), changes)
            runs[name].append(train_and_measure(one, held_out))
            loss = _objective(list(runs[name][-1].values()), held_out)
            say(f"check {number + 1} of {config.verify_seeds}, {name}: loss {loss:.4f}")
    objectives = {name: [_objective(list(losses.values()), held_out) for losses in each] for name, each in runs.items()}
    gain, low, high = gained(objectives["natural"], objectives["fitted"])
    check = Check(natural=tuple(runs["natural"]), fitted=tuple(runs["fitted"]), gain=gain, low=low, high=high)
    verdict: Verdict = "confirmed" if low > 0 else "worse" if high < 0 else "not confirmed"
    return dataclasses.replace(found, check=check, verdict=verdict)


def _objective(losses: Sequence[float], held_out: Sequence[HeldOutSet]) -> float:
    return float(np.average(losses, weights=[each.weight for each in held_out]))


def _write_configs(run_dir: Path, config: MixtureSearch, found: Found) -> None:
    """Writes the configurations, or takes away those of an earlier start where there is nothing to propose."""
    if found.best is None or found.verdict == "worse":
        for name in ("overlay", "train"):
            (run_dir / f"{name}.yaml").unlink(missing_ok=True)
        return
    weights = as_weights(found.by, dict(zip(found.combinations, found.best, strict=True)))
    overlay = {"data": {"mixture": {"by": list(found.by), "weights": weights}}}
    known = {"tokenizer": {"path": str(run_dir / "tokenizer")}}
    whole = to_dict(changed(config.train, merge(overlay, known))) | {"run_dir": ""}
    for name, values in (("overlay", overlay), ("train", whole)):
        with written_beside(run_dir / f"{name}.yaml") as file:
            file.write(f"# qwen3-jax train {run_dir / 'train.yaml'} run_dir=DIR\n#\n# {verdict_line(found)}\n")
            yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)


def _claim(run_dir: Path, config: MixtureSearch) -> None:
    """Writes search.json, or requires the one there to be of this search; only `verify_seeds` may change."""
    ours = dataclasses.asdict(config) | {"run_dir": "", "train": to_dict(config.train)}
    ours = json.loads(json.dumps(ours, default=dict))
    path = run_dir / "search.json"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in ours if ours[key] != theirs.get(key) and key != "verify_seeds")
        if differ:
            raise ValueError(
                f"{run_dir} must be empty or hold this search, got one that differs in {', '.join(differ)}: choose "
                "another run_dir"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as file:
        json.dump(ours, file, indent=1, ensure_ascii=False)
