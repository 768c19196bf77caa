"""The two laws of the loss curve (tools.law) on our own runs; docs/laws.md has what came of it.

    python -m experiments.law prepare ../shared/data/corpus   # data/law/toy.txt, and data/law/sources of two sources
    python -m tools.compare experiments/law.toml              # fresh schedules; the other two: shifts
    python -m tools.law parts out/law-shift/* out/law-sources/*
    python -m experiments.law tables                          # results/laws.md, .json, .png, .svg of all that is there

`tables` takes E4's runs from results/e4.json, and of the others those that have been made, here or before.
"""

import argparse
import functools
import itertools
import json
from pathlib import Path

import numpy as np

import flags
import toy
from experiments import e5
from flags import new_parser
from tools import compare, law
from train import share_of_rate

DATA, RESULTS = Path("data/law"), Path("results/laws.md")
SOURCES = {"1-childes": "childes", "2-wikipedia": "wikipedia"}
E4 = argparse.Namespace(lr=2e-3, warmup=20, lr_end=0.0)
BATCHES = 77  # of a pass of E4's runs
RULES = {"best fit": None, "0.98": 0.98}  # how lambda is chosen


def prepare(corpus: Path | None, words: int = 100_000) -> None:
    """Write the texts of experiments/law-shift.toml: more of the built-in corpus, and of two sources so many words."""
    texts = {DATA / "toy.txt": ["\n".join(scene) for scene in toy.documents(words=300_000)]}
    for stage, source in SOURCES.items() if corpus else ():
        pieces = ["\n".join(lines) for lines in e5.excerpts(corpus / source)]
        taken = pieces[:: max(1, len(pieces) * 500 // words)]
        texts[DATA / "sources" / stage / f"{source}.txt"] = taken
    for file, documents in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(documents) + "\n", encoding="utf-8", newline="")
        print(f"{file}: {sum(len(document.split()) for document in documents):,} words")


def peak_rates(args: argparse.Namespace, budget: int) -> np.ndarray:
    """The rates of a run with these flags, the warm-up at the peak, (budget,)."""
    return law.at_peak(args.lr * np.array([share_of_rate(update, budget, args) for update in range(budget)]))


def e4_curves(mode: str) -> dict[str, list[law.Curve]]:
    """E4's runs by schedule, a curve for each seed; their rates follow from their flags."""
    results, found = json.loads(Path("results/e4.json").read_text())["results"], {}
    for schedule in ("constant", "cosine", "wsd"):
        found[schedule] = []
        for seed, run in results[f"{mode}, {schedule}"].items():
            points = run["evaluations"][1:]
            rates = peak_rates(argparse.Namespace(**vars(E4), lr_schedule=schedule), points[-1]["update"])
            numbers = (np.array([point[key] for point in points]) for key in ("update", "val_loss"))
            found[schedule].append(law.Curve(f"{mode}, {schedule}, seed {seed}", rates, *numbers))
    return found


def made(grid: str, part: str | None = None) -> dict[str, list[law.Curve]]:
    """The finished runs of a grid, by name, one of each seed; with a part those whose parts are measured.

    Those that are no longer in out/ are taken from results/laws.json.
    """
    name, _, wanted = compare.read_grid(Path(f"experiments/{grid}.toml"), quick=False)
    file, found = RESULTS.with_suffix(".json"), {}
    before = json.loads(file.read_text()).get(f"{grid}, {part}", []) if file.exists() else []
    known = {point["run"]: point for point in before}
    for (run, seed), words in wanted.items():
        folder, title = compare.folder(name, run, seed), f"{run}, seed {seed}"
        if (folder / ("parts.json" if part else "checkpoint.pt")).exists():
            curve = law.read_run(folder, part)[0]._replace(name=title)
            if part or curve.updates[-1] == len(curve.rates) and curve.updates[-1] % BATCHES == 0:
                found.setdefault(run, []).append(curve)
        elif title in known:
            flags.fill_in(args := flags.get_args(words))
            updates, losses = (np.array(known[title][key]) for key in ("updates", "losses"))
            args.warmup = min(args.warmup, int(updates[-1]) // 10)
            rates = peak_rates(args, int(updates[-1]))
            found.setdefault(run, []).append(law.Curve(title, rates, updates, losses, known[title]["shift"]))
    return found


def mean_of(curves: list[law.Curve]) -> law.Curve:
    """The mean over seeds, at the updates that all were measured at."""
    shared = functools.reduce(np.intersect1d, [curve.updates for curve in curves])
    losses = [curve.losses[np.isin(curve.updates, shared)] for curve in curves]
    return curves[0]._replace(updates=shared, losses=np.mean(losses, axis=0))


def annealing_rows(fitted: list[law.Curve], target: list[law.Curve], name: str, first: int) -> list[str]:
    """A row for each rule of lambda: how well the mean over seeds of a schedule is predicted."""
    run, rows = mean_of(target).between(first, np.inf), []
    last = run.updates > 0.8 * len(run.rates)
    spread = np.std([curve.losses[-1] for curve in target], ddof=1) if len(target) > 1 else np.nan
    simple = law.naive(fitted, run)
    for rule, lam in RULES.items():
        found = law.fit([curve.between(first, np.inf) for curve in fitted], lam)
        cells = [name, str(len(target)), rule, f"{found.lam:g}"]
        for predicted in (found.at(run, run.updates), simple):
            if predicted is None:
                cells += ["-"] * 3
                continue
            mean, _, end = law.errors(predicted, run)
            cells += [f"{mean:.4f}", f"{np.abs(predicted - run.losses)[last].mean():.4f}", f"{end:+.4f}"]
        rows.append("| " + " | ".join([*cells, "-" if np.isnan(spread) else f"{spread:.4f}"]) + " |")
    return rows


def cell(law_of: list[law.Curve], target: law.Curve) -> tuple[str, law.Law]:
    """How well a run is predicted: mean error, that of the naive prediction, R2; and the law."""
    found = law.fit(law_of)
    mean, r2, _ = law.errors(found.at(target, target.updates), target)
    return f"{mean:.3f} ({law.errors(law.naive(law_of, target), target)[0]:.3f}), {r2:.3f}", found


def shift_rows(grid: str, part: str) -> tuple[list[str], list[str]]:
    """Each time of the shift predicted from the others; the second half of the points after it from the first half."""
    runs, rows, halves = made(grid, part), [], []
    shortest = min((len(curve.rates) for curves in runs.values() for curve in curves), default=0)
    names = [name for name in ("early", "middle", "late") if name in runs]
    for share, fitted in [(5, some) for n in (1, 2) for some in itertools.combinations(names, n)] + [(3, names[::2])]:
        first, cells = shortest // share, {}
        chosen = [curve.between(first, np.inf) for name in fitted for curve in runs[name]]
        for name in names:
            if name not in fitted:
                cells[name], found = cell(chosen, mean_of(runs[name]).between(first, np.inf))
        if cells:
            shown = [cells.get(name, "") for name in ("early", "middle", "late")]
            values = ", ".join(f"{name} {found.values[name]:.3g}" for name in ("B", "E", "b"))
            rows.append("| " + " | ".join([grid, part, str(first), " and ".join(fitted), *shown, values]) + " |")
    for name in names:
        half = (runs[name][0].shift + len(runs[name][0].rates)) // 2
        chosen = [curve.between(shortest // 5, half) for curve in runs[name]]
        halves.append(cell(chosen, mean_of(runs[name]).between(half + 1, np.inf))[0])
    return rows, [f"| {grid} | {part} | {' | '.join(halves)} |"] if len(names) == 3 else []


def sorted_run() -> tuple[str, law.Curve, np.ndarray]:
    """E4's sorted run at a constant rate as its random one's law and, from the start of every pass, the shift's term.

    Three parameters, B, E and b; a line about it, the measured curve and the fitted one.
    """
    first = mean_of(e4_curves("random")["constant"]).between(BATCHES, np.inf)
    run = mean_of(e4_curves("curriculum")["constant"]).between(BATCHES, np.inf)
    base = law.fit([first]).at(run, run.updates)
    since = run.rates[0] * ((run.updates - 1) % BATCHES + 1)
    best = (np.inf, np.array([]), "")
    for E, b in itertools.product(np.geomspace(0.01, 1e4, 49), np.geomspace(0.01, 20, 31)):
        x = 1 - (1 + E * since) ** -b
        B = x @ (run.losses - base) / (x @ x)
        loss = law.huber(np.log(np.maximum(base + B * x, 1e-9)) - np.log(run.losses))
        if loss < best[0]:
            best = (loss, base + B * x, f"B {B:.3g}, E {E:.3g}, b {b:.3g}")
    mean, r2, _ = law.errors(best[1], run)
    return f"{best[2]}: mean error {mean:.3f} nats, R2 {r2:.3f}, {len(run.losses)} points", run, best[1]


def figure(fresh: dict[str, list[law.Curve]], run: law.Curve, fitted: np.ndarray):
    """Annealing, predicted schedules; the sorted run; and below a shift of text: losses on the new and on the old."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 8.5), layout="constrained")
    (left, right), shifts = drawn.subplots(2, 2)
    e4 = e4_curves("random")
    found = law.fit([curve.between(77, np.inf) for name in ("constant", "cosine") for curve in e4[name]], 0.98)
    for i, (name, curves) in enumerate((e4 | fresh).items()):
        mean = mean_of(curves).between(77, np.inf)
        every, colour = np.arange(77, len(mean.rates) + 1), law.COLOURS[i]
        left.plot(mean.updates, mean.losses, "osD^vP*"[i], color=colour, markersize=4, label=name)
        left.plot(every, found.at(mean, every), color=colour)
    left.set_title("Constant and cosine fitted (lambda 0.98), others predicted")
    for part, ax in zip(("new", "old"), shifts, strict=True):
        runs = made("law-shift", part)
        first = min((len(curve.rates) for curves in runs.values() for curve in curves), default=0) // 5
        some = [curve.between(first, np.inf) for name in ("early", "late") for curve in runs.get(name, [])]
        for i, (name, curves) in enumerate(runs.items()):
            mean = mean_of(curves).between(first, np.inf)
            every = np.arange(first, len(mean.rates) + 1)
            ax.plot(mean.updates, mean.losses, "osD"[i], color=law.COLOURS[i], markersize=4, label=f"{name} shift")
            ax.plot(every, law.fit(some).at(mean, every), "--" if name == "middle" else "-", color=law.COLOURS[i])
        ax.set_title(f"{part.title()} text: early and late shift fitted, middle predicted")
    right.plot(run.updates, run.losses, "o", color=law.COLOURS[0], label="sorted in every pass, measured")
    right.plot(run.updates, fitted, color=law.COLOURS[1], label="random's law and the shift's term")
    right.set_title("A sorted run (E4, constant rate)")
    for ax in (left, right, *shifts):
        ax.set(xlabel="update", ylabel="held-out loss, nats per token")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    return drawn


def tables() -> None:
    """Write everything that the runs at hand allow."""
    import matplotlib

    e4, fresh = e4_curves("random"), made("law")
    head = ["schedule", "seeds", "lambda by", "lambda", "mean error", "last fifth", "at the end", "naive mean",
            "naive last fifth", "naive at the end", "sd over seeds at the end"]  # fmt: skip
    lines = ["Annealing, nats: E4's schedules, each predicted from the other two; then fresh ones, from constant and "
             "cosine.", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]  # fmt: skip
    for name, curves in e4.items():
        others = [curve for other in e4 if other != name for curve in e4[other]]
        lines += annealing_rows(others, curves, name, 77)
    for name, curves in fresh.items():
        lines += annealing_rows(e4["constant"] + e4["cosine"], curves, name, 77)
    shifts = [(grid, part) for grid in ("law-shift", "law-sources") for part in ("old", "new")]
    rows = [shift_rows(grid, part) for grid, part in shifts]
    for title, head, some in (
        ("A shift predicted from others: mean error in nats (of the naive prediction), R2.",
         ["text", "part", "from update", "fitted", "early", "middle", "late", "shift"], [row[0] for row in rows]),
        ("The second half of the points after a shift, predicted from those before.",
         ["text", "part", "early", "middle", "late"], [row[1] for row in rows]),
    ):  # fmt: skip
        lines += ["", title, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *sum(some, [])]
    told, run, fitted = sorted_run()
    lines += ["", f"E4's sorted run, constant rate, mean of three seeds, from the second pass on: {told}."]
    RESULTS.write_text("\n".join(lines) + "\n")
    points = {f"{grid}, {part}": made(grid, part) for grid, part in [("law", None), *shifts]}
    kept = {key: [{"run": c.name, "shift": c.shift, "updates": c.updates.tolist(), "losses": c.losses.tolist()}
                  for curves in runs.values() for c in curves] for key, runs in points.items()}  # fmt: skip
    compare.keep(RESULTS.with_suffix(".json"), kept)
    with matplotlib.rc_context({"svg.hashsalt": "bcp"}):
        drawn = figure(fresh, run, fitted)
        drawn.savefig(RESULTS.with_suffix(".png"), dpi=110)
        drawn.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})
    print(RESULTS.read_text())


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked. Ends the program on a wrong one."""
    parser = new_parser("experiments.law", __doc__)
    parser.add_argument("what", choices=("prepare", "tables"), help="see above")
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of folders of text (default: the toy text only)")
    args = parser.parse_args(argv)
    if args.corpus and (missing := [s for s in SOURCES.values() if not (args.corpus / s).is_dir()]):
        parser.error(f"{args.corpus / missing[0]}: no such folder; the corpus needs one")
    return args


def main() -> None:
    args = get_args()
    if args.what == "prepare":
        prepare(args.corpus)
    else:
        tables()


if __name__ == "__main__":
    main()
