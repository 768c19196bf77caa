"""E8: is BCP less sensitive to the learning rate? Pairs of matched rates, and how wide a range of them is good.

    python -m tools.compare experiments/e8.toml --results=results --jobs=2
    python -m experiments.e8                                    # results/e8-rates.md, .png, .svg, from results/e8.json

BCP with p = 2 and C = 1 moves a quarter as far in an update as `random` does, so its rates are four times as high.
"""

import functools
import json
import statistics
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flags import new_parser
from tools import compare

RATES = ("2.5e-4", "1e-3", "4e-3", "1.6e-2", "6.4e-2")
METHODS = {"random": RATES[:4], "bcp": RATES[1:], "repetition": RATES[:4]}
NAMES = {"random": "plain training", "bcp": "BCP, p = 2, C = 1", "repetition": "repetition of four"}
FILE = Path("results/e8-rates.md")

loss = functools.partial(compare.late, measure="val_loss")
pairs = functools.partial(compare.late, measure="toy")


def means(results: dict[str, dict[str, dict]], method: str) -> list[float]:
    """The loss of a method at each of its rates, nats per token, mean over seeds."""
    runs = (results[f"{method}, {rate}"].values() for rate in METHODS[method])
    return [statistics.fmean(map(loss, seeds)) for seeds in runs]


def width(rates: list[float], losses: list[float], within: float = 0.1) -> tuple[float, bool]:
    """The factor between the largest and the smallest rate that near to the least loss; whether an end is among them.

    Between the given rates, losses are interpolated, linear in the logarithm of the rate.
    """
    fine = np.linspace(np.log(rates[0]), np.log(rates[-1]), 1001)
    near = np.flatnonzero(np.interp(fine, np.log(rates), losses) <= min(losses) + within)
    return float(np.exp(fine[near[-1]] - fine[near[0]])), bool(near[0] == 0 or near[-1] == 1000)


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row per rate of `random`, with the matched runs of the others; then how wide each range is."""
    head = ["rate of random", "random, nats", "BCP at four times it", "against random", "pairs, points"]
    head += ["repetition", "against random", "pairs, points"]
    rows = []
    for rates in zip(*METHODS.values(), strict=True):
        base, *others = (results[f"{method}, {rate}"] for method, rate in zip(METHODS, rates, strict=True))
        rows.append([rates[0], compare.spread([loss(run) for run in base.values()], 3)])
        for own in others:
            rows[-1].append(compare.spread([loss(run) for run in own.values()], 3))
            for value, digits in ((loss, 3), (pairs, 1)):
                rows[-1].append(compare.tested(*compare.in_common(own, base, value), digits))
    wide = {method: width([float(rate) for rate in METHODS[method]], means(results, method)) for method in METHODS}
    told = ", ".join(f"{method} {'at least ' * ends}{factor:.1f}" for method, (factor, ends) in wide.items())
    return compare.markdown(head, rows) + f"\nRates within 0.1 nats of a method's best span a factor of: {told}.\n"


def draw(results: dict[str, dict[str, dict]]) -> None:
    """Loss over the learning rate, a line for each method; that of BCP is drawn at a quarter of its rate, too."""
    with matplotlib.rc_context(compare.LOOK):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        ax = figure.subplots()
        for i, (method, rates) in enumerate(METHODS.items()):
            losses = [[loss(run) for run in results[f"{method}, {rate}"].values()] for rate in rates]
            look = {"marker": "osD"[i], "color": compare.COLOURS[i], "capsize": 3, "label": NAMES[method]}
            ax.errorbar(
                [float(rate) for rate in rates], means(results, method), [np.std(one) for one in losses], **look
            )
        ax.plot([float(rate) / 4 for rate in METHODS["bcp"]], means(results, "bcp"), "s--", color=compare.COLOURS[1],
                markerfacecolor="white", label="BCP at a quarter of its rate")  # fmt: skip
        ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss, nats per token")
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.05, 1))
        compare.save(figure, FILE)


def main() -> None:
    new_parser("experiments.e8", __doc__).parse_args()
    results = json.loads(Path("results/e8.json").read_text())["results"]
    FILE.write_text(table(results))
    draw(results)
    print(table(results))


if __name__ == "__main__":
    main()
