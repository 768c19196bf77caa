"""The two laws of the loss curve: fit them on runs, predict others: python -m tools.law fit RUN... --predict RUN

    annealing   L(s) = L0 + A S1^-a - C S2                               (arXiv 2408.11029)
    shift       L(s) = L0 + A S1^-a - C1 S2' - C2 S2" + B (1 - (1 + E S1")^-b)       (arXiv 2505.07796)

L is held-out loss, nats per token. S1 is the sum of the rates up to update s, the warm-up counted at the peak, and S1"
its part since the text shifted. S2 is the sum of m_i = lambda m_(i-1) + (rate_(i-1) - rate_i) up to s: S2' is the part
before the shift and S2" the one since. B is above 0 for the old text and below for the new. Readings: the second law's
form and names, and that m is carried across the shift.

Fitted are all points from --from on, by the Huber loss of log L (delta 0.001) and L-BFGS from a grid of starts. Unless
it is given, lambda is the one of 1 - 1/10, 1/20, 1/50, 1/100, 1/200, 1/500, 1/1000 that fits the fitted runs best.
Printed are the parameters and, of every run, mean absolute error, R2 and the error at the end (predicted - measured).
The naive prediction beside it is the curve of the fitted runs of constant rate at the same update, or as long after the
shift; beyond their end, their last loss.

    python -m tools.law fit out/constant out/cosine --schedule=wsd --budget=770       a run that does not exist
    python -m tools.law fit out/run --until=400                                       the rest of one that does
    python -m tools.law parts out/shift-1 out/shift-2                    losses of the text before and after the shift
    python -m tools.law fit out/shift-1 --part=old --predict out/shift-2              ... and their law

`parts` takes runs of --order=shift with --keep-weights=evaluations, and writes parts.json into them.

Known faults of the laws: a rate of zero still lowers L, through m; more decay is always better, and the best time for
it is not predicted; another peak rate, model or batch needs another fit; warm-up and the first updates do not follow
them; without a fitted run whose rate falls, C is unknown, and taken as 0.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import checkpoint
import journal
from flags import new_parser, number

LAMBDAS = [1 - 1 / n for n in (10, 20, 50, 100, 200, 500, 1000)]
DELTA, POLISHED = 1e-3, 4  # of the Huber loss; how many starts of the grid L-BFGS goes on from
NAMES = ("L0", "A", "C", "C2", "B", "a", "E", "b")  # without a shift: L0, A, C, a
BOUNDS = {"a": (0.01, 5), "E": (1e-3, 1e6), "b": (0.01, 20)}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito


class Curve(NamedTuple):
    """A run: the rate of every update (N,), those of the warm-up at the peak, and measured losses, nats per token."""

    name: str
    rates: np.ndarray
    updates: np.ndarray  # after which the losses were measured, (n,)
    losses: np.ndarray
    shift: int | None = None  # updates before the text shifts

    def between(self, first: float, last: float) -> "Curve":
        """With the points after these updates only."""
        kept = (self.updates >= first) & (self.updates <= last)
        return self._replace(updates=self.updates[kept], losses=self.losses[kept])


class Law(NamedTuple):
    """A fitted law."""

    lam: float
    values: dict[str, float]  # by NAMES
    loss: float  # of the fit: summed Huber loss / delta^2

    def at(self, curve: Curve, updates: np.ndarray) -> np.ndarray:
        """L after these updates of a run with these rates."""
        x = areas(curve, updates, self.lam)
        shape = [self.values[name] for name in BOUNDS if name in self.values]
        return columns(x, shape) @ [value for name, value in self.values.items() if name not in BOUNDS]


def at_peak(rates: np.ndarray) -> np.ndarray:
    """The rates with the warm-up counted at the peak."""
    return np.where(np.arange(len(rates)) < np.argmax(rates), np.max(rates), rates)


def areas(curve: Curve, updates: np.ndarray, lam: float) -> np.ndarray:
    """S1, S2 before the shift, S2 since, S1 since, after each of the updates: (4, n)."""
    from scipy.signal import lfilter

    m = lfilter([1], [1, -lam], -np.diff(curve.rates, prepend=curve.rates[:1]))
    S1, S2 = (np.concatenate(([0], np.cumsum(x))) for x in (curve.rates, m))
    before = np.minimum(updates, len(m) if curve.shift is None else curve.shift)
    return np.stack([S1[updates], S2[before], S2[updates] - S2[before], S1[updates] - S1[before]])


def columns(x: np.ndarray, shape: list[float]) -> np.ndarray:
    """What L0, A, C and, with a shift, C2 and B are multiplied by, (n, 3 or 5); shape: a and, with a shift, E and b."""
    a, *shift = shape
    found = [np.ones(x.shape[1]), x[0] ** -a, -x[1]]
    if shift:
        found += [-x[2], 1 - (1 + shift[0] * x[3]) ** -shift[1]]
    return np.stack(found, axis=1)


def huber(error: np.ndarray) -> float:
    """Summed, in units of DELTA^2."""
    error = np.abs(error) / DELTA
    return float(np.where(error < 1, error**2 / 2, error - 0.5).sum())


def fit(curves: list[Curve], lam: float | None = None) -> Law:
    """The law of these runs; with the best of LAMBDAS where lambda is not given. ValueError with too few points."""
    if lam is None and any(np.ptp(curve.rates) for curve in curves):
        return min((fit(curves, lam) for lam in LAMBDAS), key=lambda law: law.loss)
    lam = LAMBDAS[2] if lam is None else lam  # without annealing S2 is 0 anyway
    x = np.concatenate([areas(curve, curve.updates, lam) for curve in curves], axis=1)
    losses = np.concatenate([curve.losses for curve in curves])
    shifted = any(curve.shift is not None for curve in curves)
    names = NAMES if shifted else tuple(name for name in NAMES if name not in ("C2", "B", "E", "b"))
    if len(losses) <= len(names):
        raise ValueError(f"{len(losses)} points for the {len(names)} parameters of the law; evaluate more often "
                         "(train.py --eval-every), or give more runs or an earlier --from")  # fmt: skip
    grid = [np.geomspace(0.05, 2, 8)]
    if shifted:
        grid = [grid[0][::2], np.array([1, 10, 100, 1000]) / max(x[3].max(), 1e-12), np.array([0.2, 0.7, 2])]
    starts = []
    for shape in itertools.product(*grid):
        X = columns(x, shape) / losses[:, None]
        linear = np.linalg.lstsq(X, np.ones(len(X)), rcond=None)[0]
        linear[1:4] = np.maximum(linear[1:4], 0)  # A, C, C2
        starts.append((huber(np.log(np.maximum(X @ linear, 1e-9))), [*linear, *shape]))
    starts = sorted(starts, key=lambda start: start[0])[:POLISHED]
    loss, values = min((polish(x, losses, np.array(start)) for _, start in starts), key=lambda found: found[0])
    return Law(lam, dict(zip(names, map(float, values), strict=True)), loss)


def polish(x: np.ndarray, losses: np.ndarray, start: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and the parameters that L-BFGS ends at: linear ones in nats, the others as logarithms."""
    from scipy.optimize import minimize

    n = 3 if len(start) == 4 else 5
    largest = np.abs(columns(x, start[n:])).max(axis=0)
    unit = np.where(largest > 0, largest, np.inf)  # a column of zeros has no parameter: C = 0

    def values(z: np.ndarray) -> np.ndarray:
        return np.concatenate((z[:n] / unit, np.exp(z[n:])))

    def objective(z: np.ndarray) -> float:
        now = values(z)
        return huber(np.log(np.maximum(columns(x, now[n:]) @ now[:n], 1e-9)) - np.log(losses))

    z = np.concatenate((start[:n] * largest, np.log(start[n:])))
    bounds = [(0, None)] * min(n, 4) + [(None, None)] * (n - 4) + [tuple(np.log(b)) for b in BOUNDS.values()]
    found = minimize(objective, z, jac="3-point", method="L-BFGS-B", bounds=bounds[: len(z)],
                     options={"maxiter": 2000, "maxfun": 50_000, "ftol": 1e-12, "gtol": 1e-6})  # fmt: skip
    return float(found.fun), values(found.x)


def naive(fitted: list[Curve], curve: Curve) -> np.ndarray | None:
    """The curve of the fitted runs of constant rate, at the updates of another; None if no rate is constant."""
    found = []
    for run in fitted:
        if not np.ptp(run.rates):
            later = 0 if run.shift is None or curve.shift is None else run.shift - curve.shift
            at = np.where(curve.updates > (curve.shift or 0), curve.updates + later, curve.updates)
            found.append(np.interp(at, run.updates, run.losses))
    return np.mean(found, axis=0) if found else None


def errors(predicted: np.ndarray, curve: Curve) -> tuple[float, float, float]:
    """Mean absolute error, R2, and predicted - measured at the last point; nats."""
    error = predicted - curve.losses
    around = ((curve.losses - curve.losses.mean()) ** 2).sum()
    return float(np.abs(error).mean()), float(1 - (error**2).sum() / around) if around else 0.0, float(error[-1])


# --- Runs -------------------------------------------------------------------------------------------------------------


def read_run(folder: Path, part: str | None = None, shift: int | None = None) -> tuple[Curve, dict]:
    """A run's curve, and what must be the same in all runs of a law. Raises ValueError, one line."""
    config, records = checkpoint.read_config(folder), journal.read(folder)
    trained, points = journal.updates(records), journal.evaluations(records)
    if not trained or not points or points[0]["val_loss"] is None:
        raise ValueError(f"{folder}: has no held-out losses; give an evaluated run, of text with a held-out part")
    steps, losses = ([point[key] for point in points] for key in ("update", "val_loss"))
    if any(one["loss"] is None for one in trained) or None in losses or min(losses[1:], default=9) > losses[0]:
        raise ValueError(f"{folder}: has diverged; a law is for runs that learn, so train again with a lower --lr")
    if part:
        if not (folder / "parts.json").is_file():
            raise ValueError(f"{folder}: its two parts are not measured; run python -m tools.law parts {folder}")
        measured = json.loads((folder / "parts.json").read_text())
        steps, losses, shift = measured["updates"], measured[part], measured["shift"]
    rates = at_peak(np.array([one["lr"] for one in trained]))
    same = {"text": config["corpus"].get("files"), "model": config["model"],
            "batch": [config["flags"].get(name) for name in ("batch_size", "block_size")]}  # fmt: skip
    return Curve(str(folder), rates, np.array(steps), np.array(losses, dtype=float), shift), same


def read_runs(folders: list[Path], part: str | None, shift: int | None) -> list[Curve]:
    """The curves of runs of one text, model and size of batch; ValueError, one line, if they are not that."""
    runs = [read_run(folder, part, shift) for folder in folders]
    for curve, same in runs:
        if other := [what for what in same if same[what] != runs[0][1][what]]:
            raise ValueError(f"{curve.name}: has another {other[0]} than {runs[0][0].name}; a law is for one")
    return [curve for curve, _ in runs]


def imagined(like: Curve, warmup: int, schedule: str, budget: int, lr_end: float, shift: int | None) -> Curve:
    """A run that does not exist, with the peak rate of one that does; its losses are not measured."""
    from train import share_of_rate

    flags = argparse.Namespace(lr_schedule=schedule, lr_end=lr_end, warmup=warmup)
    rates = like.rates.max() * np.array([share_of_rate(update, budget, flags) for update in range(budget)])
    updates = np.unique(np.linspace(0, budget, 41).astype(int)[1:])
    return Curve(f"{schedule}, {budget} updates", at_peak(rates), updates, np.full(len(updates), np.nan), shift)


def measure_parts(folder: Path) -> dict:
    """The losses on the held-out text before and after the shift, in the first pass, and when it came."""
    import curriculum
    import data
    import evaluate
    from machine import pick_device

    config, records = checkpoint.read_config(folder), journal.updates(journal.read(folder))
    flags, kept = config["flags"], checkpoint.kept_weights(folder)
    if flags.get("order") != "shift" or not kept:
        raise ValueError(f"{folder}: is no run of --order=shift with --keep-weights=evaluations; train one")
    corpus = data.open_prepared(Path(config["corpus"]["folder"]))
    late = curriculum.stages(corpus, flags["difficulty"], flags["aoa_file"]) > 0
    order = (flags["order"], flags["difficulty"], flags["seed"], flags["data_share"], flags["aoa_file"])
    lines = curriculum.order_lines(corpus, *order)
    tokens = np.diff(corpus.line_start)[lines[~late[lines]]].sum()
    batch = tokens // (flags["block_size"] * flags["batch_size"])  # the one that the shift falls into
    first_pass = [one for one in records if one["epoch"] == 1]
    shift = next((one["update"] - 1 for one in first_pass if one["batch"] >= batch), len(first_pass))
    model = evaluate.load_run(folder, pick_device("auto"))[0]
    blocks = {part: curriculum.validation_blocks(dataclasses.replace(corpus, line_seen=corpus.line_seen | other),
              flags["block_size"]) for part, other in (("old", late), ("new", ~late))}  # fmt: skip
    found: dict = {"shift": int(shift), "updates": [], "old": [], "new": []}
    for update, file in kept:
        if update <= first_pass[-1]["update"]:
            checkpoint.fill(model, checkpoint.load(file)["model"], file)
            found["updates"].append(update)
            for part, (x, y) in blocks.items():
                counted = (y != -100).any(axis=1)
                found[part].append(evaluate.mean_loss(model, x[counted], y[counted]))
    if None in found["old"] + found["new"]:
        raise ValueError(f"{folder}: one of the two parts of its text has no held-out lines")
    return found


# --- The program ------------------------------------------------------------------------------------------------------


def draw(law: Law, runs: list[Curve], file: Path, first: int) -> None:
    """Measured points, and the law's curves from --from on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    for i, run in enumerate(runs):
        kept, every = run.between(first, len(run.rates)), np.arange(max(first, 1), len(run.rates) + 1)
        ax.plot(kept.updates, kept.losses, "osD^vP*"[i % 7], color=COLOURS[i % 7], markersize=4, label=run.name)
        ax.plot(every, law.at(run, every), color=COLOURS[i % 7])
    ax.set(xlabel="update", ylabel="held-out loss, nats per token", title="Measured (points), and the law (lines)")
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def report(law: Law, fitted: list[Curve], predicted: list[Curve], first: int, until: float) -> None:
    """Parameters, then a line for every run."""
    print(f"lambda {law.lam:g}  " + "  ".join(f"{name} {value:.4g}" for name, value in law.values.items()))
    if not any(np.ptp(run.rates) for run in fitted):
        print("no fitted run's rate falls: C is unknown, and taken as 0")
    print(f"{'mean error':>10} {'R2':>7} {'at the end':>10} {'naive mean':>10} {'at the end':>10}   nats; of what")
    after = [(f"{run.name} after {until:g}", run.between(until + 1, np.inf)) for run in fitted]
    rows = [(f"{run.name} (fitted)", run.between(first, until)) for run in fitted]
    rows += [row for row in after if len(row[1].updates)]
    rows += [(f"{run.name} (predicted)", run.between(first, np.inf)) for run in predicted]
    for name, run in rows:
        L, simple = law.at(run, run.updates), None
        if "fitted" not in name:
            simple = naive([one.between(0, until) for one in fitted], run)
        if not len(run.losses) or np.isnan(run.losses).any():
            beside = "" if simple is None else f", naive {simple[-1]:.3f}"
            print(f"{name}: {L[-1]:.3f} nats at its end{beside}")
            continue
        mean, r2, end = errors(L, run)
        cells = [f"{mean:10.4f}", f"{r2:7.4f}", f"{end:+10.4f}"]
        if simple is None:
            cells += [f"{'-':>10}"] * 2
        else:
            mean, _, end = errors(simple, run)
            cells += [f"{mean:10.4f}", f"{end:+10.4f}"]
        print(" ".join(cells) + f"   {name}")


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked. Ends the program on a wrong one."""
    parser = new_parser("tools.law", __doc__)
    add, count = parser.add_argument, number(int, 1)
    add("what", choices=("fit", "parts"), help="fit a law, or measure the two parts of runs of --order=shift")
    add("runs", type=Path, nargs="+", metavar="run", help="folders that train.py wrote")
    add("--predict", type=Path, nargs="+", default=[], metavar="RUN", help="runs to compare the law with")
    add("--schedule", choices=("constant", "cosine", "wsd"), help="predict a run that does not exist (default: none)")
    add("--budget", type=count, metavar="N", help="... its updates (default: none)")
    add(
        "--lr-end", type=number(float, 0, 1), default=0.0, metavar="S", help="... its last rate, as a share of the peak"
    )
    add("--shift-at", type=count, metavar="UPDATE", help="the second law: the text shifts after this update, in "
        "all runs of which it is not known (default: none)")  # fmt: skip
    add("--part", choices=("old", "new"), help="losses on the text before or after the shift (default: on all of it)")
    add("--lambda", dest="lam", type=number(float, 0, 0.99999), help="how long m lasts (default: what fits best)")
    add("--from", dest="first", type=count, metavar="UPDATE", help="first point (default: at a fifth of the shortest "
        "fitted run)")  # fmt: skip
    add("--until", type=count, metavar="UPDATE", help="last point that is fitted (default: the end)")
    add("--figure", type=Path, metavar="FILE", help="draw points and curves: a .png or .svg (default: none)")
    args = parser.parse_args(argv)
    if bool(args.schedule) != bool(args.budget):
        parser.error("argument --schedule: a run that does not exist needs --budget, too; give both or neither")
    for name in ("scipy", *(["matplotlib"] if args.figure else [])):
        if args.what == "fit" and importlib.util.find_spec(name) is None:
            parser.error(f"{name} is missing: pip install {name} (it is in requirements-dev.txt)")
    if args.figure and args.figure.suffix not in (".png", ".svg"):
        parser.error(f"argument --figure: {args.figure}: must end in .png or .svg")
    return args


def main(args: argparse.Namespace) -> None:
    if args.what == "parts":
        for folder in args.runs:
            found = measure_parts(folder)
            (folder / "parts.json").write_text(json.dumps(found) + "\n")
            print(f"{folder / 'parts.json'}: {len(found['updates'])} points, the text shifts after {found['shift']}")
        return
    runs = read_runs([*args.runs, *args.predict], args.part, args.shift_at)
    fitted, predicted = runs[: len(args.runs)], runs[len(args.runs) :]
    first, until = args.first or min(len(run.rates) for run in fitted) // 5, args.until or np.inf
    law = fit([run.between(first, until) for run in fitted], args.lam)
    if args.schedule:
        warmup = checkpoint.read_config(args.runs[0])["flags"].get("warmup") or 0
        predicted.append(imagined(fitted[0], warmup, args.schedule, args.budget, args.lr_end, args.shift_at))
    report(law, fitted, predicted, first, until)
    if args.figure:
        draw(law, [*fitted, *predicted], args.figure, first)


if __name__ == "__main__":
    flags = get_args()
    try:
        main(flags)
    except ValueError as error:
        new_parser("tools.law").error(str(error))
    except OSError as error:
        sys.exit(f"tools.law: {error}")
