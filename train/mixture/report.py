"""The page that a search for a mixture leaves: shares, laws, errors, a plot, and what may be concluded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from qwen3_jax.files import replacing, written_beside
from qwen3_jax.train.mixture.fit import FLOORS, RIDGES
from qwen3_jax.train.mixture.search import Found, gained, verdict_line
from qwen3_jax.train.mixture.settings import MixtureSearch

INTRODUCTION = """\
Qwen3's report (arXiv 2505.09388, section 3.1) says that more than 30T tokens were annotated for educational value,
field, domain and safety, and that the mixture was optimised at the level of instances, by ablations on small proxy
models with those labels; neither the method nor the weights are published. Here every combination of labels is one
share, proxies are small runs of this project's own training loop, the loss of each held-out set is regressed on the
shares (linear, RegMix, 2407.01492; or exponential, Data Mixing Laws, 2403.16952; whichever predicts left-out proxies
better), and the shares are those of least predicted loss on the simplex.
"""


def as_dict(config: MixtureSearch, found: Found) -> dict[str, Any]:
    """All numbers of a search, as JSON values."""
    fitted = found.fit
    return {
        "verdict": found.verdict,
        "says": verdict_line(found),
        "by": found.by,
        "combinations": [
            {
                "labels": dict(zip(found.by, values, strict=True)),
                "tokens": found.tokens[i],
                "natural": float(found.natural[i]),
                "fitted": None if found.best is None else float(found.best[i]),
                "epochs": None if found.best is None else epochs(config, found)[i],
            }
            for i, values in enumerate(found.combinations)
        ],
        "sets": [
            {
                "name": name,
                "weight": float(weight),
                "law": law.kind,
                "floor": law.floor,
                "ridge": law.ridge,
                "natural_predicted": float(law.predict(found.natural)),
                "fitted_predicted": None if found.best is None else float(law.predict(found.best)),
                "rmse": float(np.sqrt(np.mean((law.left_out - found.losses[:, k]) ** 2))),
            }
            for k, (name, weight, law) in enumerate(zip(found.sets, fitted.weights, fitted.laws, strict=True))
        ],
        "r2": fitted.r2,
        "rmse": fitted.rmse,
        "rank_correlation": fitted.rank_correlation,
        "p_value": fitted.p_value,
        "seed_spread": found.seed_spread,
        "predicted_natural": found.predicted_natural,
        "predicted_fitted": found.predicted_best,
        "check": None
        if found.check is None
        else {
            "gain": found.check.gain,
            "low": found.check.low,
            "high": found.check.high,
            "natural": found.check.natural,
            "fitted": found.check.fitted,
        },
        "proxies": [
            {"shares": [float(x) for x in row], "losses": [float(x) for x in losses]}
            for row, losses in zip(found.shares, found.losses, strict=True)
        ],
    }


def epochs(config: MixtureSearch, found: Found) -> list[float]:
    """How often the real run sees the data of each combination with the fitted mixture."""
    assert found.best is not None
    pairs = zip(found.best, found.tokens, strict=True)
    return [float(share * config.final_tokens / tokens) for share, tokens in pairs]


def write_report(path: Path, config: MixtureSearch, found: Found, command: str) -> None:
    """Writes the page, its plot beside it (where matplotlib is installed), and the numbers as JSON."""
    plotted = _plot(path.with_suffix(".png"), found)
    with written_beside(path) as file:
        file.write("\n".join(_lines(config, found, command, path.with_suffix(".png").name if plotted else "")) + "\n")
    with written_beside(path.with_suffix(".json")) as file:
        json.dump(as_dict(config, found), file, ensure_ascii=False, indent=1)


def mixture_table(config: MixtureSearch, found: Found) -> Table:
    """Natural and fitted shares, for a terminal."""
    table = Table()
    for name in found.by:
        table.add_column(name)
    for name in ("tokens", "natural", "fitted", "epochs"):
        table.add_column(name, justify="right")
    for cells in _shares(config, found):
        table.add_row(*cells)
    return table


def _shares(config: MixtureSearch, found: Found) -> Iterator[tuple[str, ...]]:
    order = np.argsort(-(found.natural if found.best is None else found.best))
    times = None if found.best is None else epochs(config, found)
    for i in order:
        values = tuple(value or "(none)" for value in found.combinations[i])
        fitted = ("-", "-") if found.best is None or times is None else (f"{found.best[i]:.1%}", f"{times[i]:.2f}")
        yield (*values, f"{found.tokens[i]:,}", f"{found.natural[i]:.1%}", *fitted)


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _lines(config: MixtureSearch, found: Found, command: str, plot: str) -> Iterator[str]:
    fitted = found.fit
    yield "# A mixture fitted from proxy runs"
    yield ""
    yield f"Made by `{command}`."
    yield ""
    yield f"**{verdict_line(found)}**"
    yield ""
    yield INTRODUCTION
    spread = "" if found.seed_spread is None else f"; between seeds of the natural mixture {found.seed_spread:.4f}"
    yield f"* {len(found.shares)} proxies, {config.natural_proxies} of them with the natural mixture"
    yield "* objective: weighted mean of the held-out losses, nats a token"
    yield f"* leave-one-out error of the objective {fitted.rmse:.4f}{spread}"
    yield (
        f"* R2 {fitted.r2:.3f}, rank correlation {fitted.rank_correlation:.3f}, p {fitted.p_value:.3f} (against "
        "mixtures and losses paired at random)"
    )
    yield (
        f"* ridge ({RIDGES[0]:g} to {RIDGES[-1]:g}) and floor of the exponential law (none, or {FLOORS[0]:g} to "
        f"{FLOORS[-1]:.2g} spreads below the least loss) are chosen by the same error, which is therefore a little "
        "optimistic; the p-value repeats the choice and is not"
    )
    yield (
        f"* the real run reads at most {config.final_tokens:,} tokens and each combination at most "
        f"{config.max_epochs:g} times; no share leaves the range that proxies had"
    )
    best_proxy = float((found.losses @ fitted.weights).min())
    if found.predicted_best is not None and found.predicted_best < best_proxy:
        yield (
            f"* the loss predicted for the fitted mixture, {found.predicted_best:.4f}, is below that of the best "
            f"proxy, {best_proxy:.4f}: an extrapolation, since no proxy had all of these shares at once"
        )
    yield ""
    yield "## Shares"
    yield ""
    yield _row(*found.by, "tokens there", "natural", "fitted", "epochs")
    yield _row(*["---"] * len(found.by), *["---:"] * 4)
    yield from (_row(*cells) for cells in _shares(config, found))
    yield ""
    yield "## Held-out losses of a proxy"
    yield ""
    yield _row("set", "weight", "law", "leave-one-out error", "natural, predicted", "fitted, predicted")
    yield _row("---", "---:", "---", *["---:"] * 3)
    for each in as_dict(config, found)["sets"]:
        after = "-" if each["fitted_predicted"] is None else f"{each['fitted_predicted']:.4f}"
        numbers = (f"{each['rmse']:.4f}", f"{each['natural_predicted']:.4f}", after)
        yield _row(each["name"], f"{each['weight']:.2f}", each["law"], *numbers)
    if found.check is not None:
        yield from _check_lines(found)
    if plot:
        yield ""
        yield f"![predicted against measured loss; shares]({plot})"


def _check_lines(found: Found) -> Iterator[str]:
    check = found.check
    assert check is not None
    yield ""
    yield "## Runs of the real configuration"
    yield ""
    yield (
        f"{len(check.natural)} seeds with each mixture. Gain, natural less fitted, nats a token: {check.gain:+.4f}, "
        f"95% interval {check.low:+.4f} to {check.high:+.4f} (paired t)."
    )
    yield ""
    seeds = range(len(check.natural))
    yield _row("set", *(f"{name}, seed {i}" for name in ("natural", "fitted") for i in seeds), "gain", "95% interval")
    yield _row("---", *["---:"] * (2 * len(seeds) + 2))
    worse = []
    for name in found.sets:
        before, after = ([losses[name] for losses in each] for each in (check.natural, check.fitted))
        gain, low, high = gained(before, after)
        numbers = [f"{loss:.4f}" for loss in (*before, *after)]
        yield _row(name, *numbers, f"{gain:+.4f}", f"{low:+.4f} to {high:+.4f}")
        worse += [name] if gain < 0 else []
    yield ""
    yield f"Worse with the fitted mixture: {'; '.join(worse) or 'none of the sets'}."


def _plot(path: Path, found: Found) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = found.losses @ found.fit.weights
    guessed = np.stack([law.left_out for law in found.fit.laws], 1) @ found.fit.weights
    both = [min(measured.min(), guessed.min()), max(measured.max(), guessed.max())]
    left.plot(both, both, color="0.7", lw=1)
    left.plot(measured, guessed, "o")
    left.set(
        xlabel="measured loss, nats a token", ylabel="predicted from the other proxies", title=f"R2 {found.fit.r2:.2f}"
    )
    names = [" ".join(value or "(none)" for value in values) for values in found.combinations]
    at = np.arange(len(names))
    right.barh(at - 0.2, found.natural, 0.4, label="natural", color="0.6")
    if found.best is not None:
        right.barh(at + 0.2, found.best, 0.4, label="fitted")
    right.set(yticks=at, yticklabels=names, xlabel="share of tokens")
    right.invert_yaxis()
    right.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)
    return True
