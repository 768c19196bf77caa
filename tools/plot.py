"""Draw runs: python -m tools.plot out/<run> [out/<other> ...]

Into out/<run>/figures/, or --out, go as PNG and SVG:

    batch       one batch from inside: loss and alpha over its repeats, up to the moment of convergence
    run         training and validation loss, repeats per batch along the curriculum, the learning rate if it varies
    pairs       minimal-pair accuracy by paradigm
    retention   loss on a batch against updates since it was trained on       (train.py --track-forgetting)
    anchor      distance from the anchor by layer, weights that did not move  (--mode=bcp)
    difficulty  how hard the lines of the training text are, with examples

Several runs share the axes of `run`, `pairs`, `retention` and `anchor`; the other two show the first that has the data.
A run without the data for a figure is left out of it, and a line says so.
"""

import argparse
import functools
import importlib.util
import math
import statistics
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

try:
    import checkpoint
    import curriculum
    import flags
    import journal
except ModuleNotFoundError:
    if __package__:
        raise
    sys.exit("tools.plot: run it in the folder of train.py, as python -m tools.plot")

# Okabe & Ito's colours, which the colour-blind can tell apart; dashes and markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*"
STYLE = {
    "font.size": 11, "axes.titlesize": 11, "legend.fontsize": 10, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "bcp",
    "figure.constrained_layout.use": True,
}  # fmt: skip
WIDTH, DPI = 9, 120  # inches, and dots per inch: 1,080 pixels, shown in a README some 900 wide
# The examples of `difficulty`, and the share of the training lines that is easier.
EXAMPLES = {"A": 0.02, "B": 0.2, "C": 0.4, "D": 0.6, "E": 0.8, "F": 0.98}
FEW = 5  # no mean or median of fewer measurements is drawn


class Run(NamedTuple):
    """What a run left behind: config.json, and the records of metrics.jsonl by their kind."""

    name: str
    folder: Path
    config: dict
    updates: list[dict]
    visits: list[list[dict]]  # of the batches in the order of the text: blocks drawn from it (lfr) are none
    evaluations: list[dict]
    forgetting: list[list]

    @property
    def flags(self) -> dict:
        return self.config["flags"]


def read_run(folder: Path) -> Run:
    """Raises ValueError, one line, for a folder without a whole run; a run may still be going on."""
    config = checkpoint.read_config(folder)
    if "batches" not in config or "mode" not in config["flags"]:
        raise ValueError(f"{folder / checkpoint.CONFIG}: not of a run that train.py wrote")
    records = journal.read(folder)
    visits = [visit for visit in journal.visits(records) if visit[0]["batch"] is not None]
    kinds = journal.evaluations(records), journal.forgetting(records)
    return Run(folder.resolve().name, folder, config, journal.updates(records), visits, *kinds)


def converged(visit: list[dict]) -> bool:
    return visit[-1].get("done") == "converged"  # older runs do not say it


def retention(forgetting: list[list]) -> list[tuple[float, float, float, int]]:
    """Means over 1, 2-3, 4-7, 8-15, ... updates since a batch was trained on.

    Each: updates since, loss on the batch then and now in nats per token, number of measurements.
    """
    bins: dict[int, list[list[float]]] = {}
    for _, since, *losses in forgetting:
        if since > 0 and None not in losses:
            bins.setdefault(int(math.log2(since)), []).append([since, *losses])
    return [(*map(statistics.fmean, zip(*bins[k], strict=True)), len(bins[k])) for k in sorted(bins)]


def style(index: int) -> dict:
    """How the run of that number is drawn, in every figure."""
    return {"color": COLOURS[index % 7], "linestyle": DASHES[index % 4], "marker": MARKERS[index % 7], "markersize": 5}


def having(runs: list[Run], wanted: Callable[[Run], object], figure: str, why: str) -> list[tuple[int, Run, object]]:
    """The number, run and data (`wanted`) of each run that has any; a line is printed for every other."""
    found = [(number, run, wanted(run)) for number, run in enumerate(runs)]
    for _, run, content in found:
        if not content:
            print(f"{run.folder}: not in {figure}: {why}")
    return [each for each in found if each[2]]


def column(records: list, *keys) -> list:
    """The values that stand under a key, None (JSON has no NaN) as NaN; with several keys a list of such lists."""
    columns = [[math.nan if record[key] is None else record[key] for record in records] for key in keys]
    return columns if len(keys) > 1 else columns[0]


def rate_varies(run: Run) -> bool:
    """Whether the learning rate does, but for its warm-up."""
    rates = [update["lr"] for update in run.updates if update["update"] > (run.flags.get("warmup") or 0)]
    return bool(rates) and max(rates) - min(rates) > 1e-6 * max(rates)


def drawn(ax) -> tuple[list, list[str]]:
    """Handles and labels for a legend, of lines that have a point."""
    handles, labels = ax.get_legend_handles_labels()
    points = [handle.get_ydata() if hasattr(handle, "get_ydata") else [0] for handle in handles]
    kept = [at for at, values in enumerate(points) if any(not math.isnan(value) for value in values)]
    return [handles[at] for at in kept], [labels[at] for at in kept]


def named(runs: list[Run]) -> list[Run]:
    """Runs whose names have the flags that differ between them, but for what follows from the mode or the recipe."""
    free = flags.FREE | flags.FILES | {"eval_every", "norms_every", "track_forgetting", "keep_weights"}
    every = [run.flags for run in runs]
    differ = [key for key in every[0] if key not in free and any(own.get(key) != every[0][key] for own in every)]
    told = []
    for run in runs:
        first = [key for key in ("mode", "recipe", "p") if run.flags.get(key)]
        usual = flags.get_args([flags.spelt(key, run.flags[key]) for key in first])
        flags.fill_in(usual, run.flags["preset"])
        shown = ["mode", "recipe", *(["p"] if usual.mode == "bcp" else [])]
        own = [flags.spelt(key, run.flags[key]) for key in differ if run.flags.get(key) not in (None, False)
               and (key in shown or run.flags[key] != getattr(usual, key, None))]  # fmt: skip
        name = textwrap.fill(" ".join([run.name, *own]), 34, break_on_hyphens=False).replace("$", r"\$")
        told.append(run._replace(name=" " * name.startswith("_") + name))  # a label with _ first is not shown
    return told


def new_figure(height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


# --- The figures: each draws one, or returns None when no run has the data ---


def draw_batch(runs: list[Run], batch: int | None = None):
    """Loss and alpha over the repeats of one batch (without `batch`: one that took many, but at most 30)."""

    def candidates(run: Run) -> list[list[dict]]:
        found = run.visits if run.flags["mode"] == "bcp" else []
        return [visit for visit in found if batch in (None, visit[0]["batch"])]

    why = "no alpha without --mode=bcp" if batch is None else f"no batch {batch} of --mode=bcp"
    found = having(runs, candidates, "batch", why)
    if not found:
        return None
    _, run, choices = found[0]
    records = max(choices, key=lambda c: (converged(c), batch is not None or len(c) <= 30, len(c)))
    repeats, losses = column(records, "repeat"), column(records, "loss")
    goal = max(run.flags["goal"], (run.flags.get("goal_rel") or 0) * next((x for x in losses if not math.isnan(x)), 0))
    figure = new_figure(5.4)
    place = f"batch {records[0]['batch']} (of 0 to {run.config['batches'] - 1}) in pass {records[0]['epoch']}"
    figure.suptitle(f"One batch from inside: {run.folder.resolve().name}, {place}", fontsize=11, parse_math=False)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(repeats, losses, **style(0), label="loss L")
    upper.axhline(goal, color="black", linestyle="--", label=f"goal, {goal:.2f}")
    for above, colour, name in ((True, COLOURS[4], "above: alpha rises"), (False, COLOURS[5], "below: alpha falls")):
        some = [(loss > goal) == above for loss in losses]
        if any(some):
            look = {"color": colour, "alpha": 0.35, "lw": 0, "label": name}
            upper.fill_between(repeats, losses, goal, some, interpolate=True, **look)
    lower.plot([repeats[0] - 1, *repeats], [1.0, *column(records, "alpha")], **style(1), label="alpha, at first 1")
    if not run.flags.get("leave_at_goal"):
        lower.axhline(
            run.flags["threshold"], color="black", linestyle="--", label=f"threshold, {run.flags['threshold']:g}"
        )
    upper.set_ylabel("loss, nats per token")
    lower.set(xlabel="repeat of the batch (updates)", ylabel="alpha")
    lower.xaxis.get_major_locator().set_params(integer=True)
    for ax in (upper, lower):
        if converged(records):
            ax.axvline(repeats[-1], color=COLOURS[2], linestyle=":", lw=2, label=f"converged: repeat {repeats[-1]}")
        ax.margins(y=0.12)
        ax.legend(*drawn(ax), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_run(runs: list[Run]):
    """Losses over updates, repeats per batch along the curriculum, learning rate over updates."""
    found = having(runs, lambda run: run.updates, "run", "no updates yet")
    if not found:
        return None
    varies = any(rate_varies(run) for _, run, _ in found)
    figure = new_figure(8 if varies else 6.3)
    losses, repeats, *rates = figure.subplots(2 + varies, 1, height_ratios=(4, 3, 2)[: 2 + varies])
    for number, run, updates in found:
        own, x = style(number), column(updates, "update")
        losses.plot(x, column(updates, "loss"), color=own["color"], lw=0.8, alpha=0.55, label=f"{run.name}: training")
        points = column(run.evaluations, "update"), column(run.evaluations, "val_loss")
        losses.plot(*points, **own, lw=2, label=f"{run.name}: validation")
        for rate in rates:
            rate.plot(x, column(updates, "lr"), **own | {"marker": ""}, lw=2, label=run.name)
            rate.set(xlabel="updates", ylabel="learning rate", ylim=(0, None))
    for number, run, _ in [each for each in found if any(u["repeat"] > 1 for u in each[1].updates)] or found[:1]:
        passes: dict[int, dict[int, int]] = {}
        for visit in sorted(run.visits, key=lambda visit: (visit[0]["epoch"], visit[0]["batch"])):
            passes.setdefault(visit[0]["epoch"], {})[visit[0]["batch"]] = len(visit)
        for epoch, counts in passes.items():
            look = {"color": style(number)["color"], "marker": MARKERS[(number + epoch - 1) % 7], "ls": "", "ms": 4.5}
            look |= {"markerfacecolor": "none"} if epoch > 1 else {}
            label = f"{run.name}, pass {epoch}" if epoch <= 4 else None
            repeats.plot(list(counts), list(counts.values()), **look, label=label)
    repeats.set_yscale("log", base=2)
    repeats.yaxis.set_major_formatter("{x:g}")
    losses.set(xlabel="updates", ylabel="loss, nats per token")
    repeats.set(xlabel="batch, in the order of the curriculum", ylabel="repeats (updates)")
    for ax in (losses, repeats, *rates):
        ax.legend(*drawn(ax), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_pairs(runs: list[Run]):
    """Minimal-pair accuracy over updates, one small panel for each paradigm."""

    def scored(run: Run) -> list[dict]:
        return [evaluation for evaluation in run.evaluations if evaluation.get("pairs")]

    found = having(runs, scored, "pairs", "no minimal pairs, which only the built-in corpus brings")
    if not found:
        return None
    paradigms = list(dict.fromkeys(uid for _, _, evaluations in found for uid in evaluations[-1]["pairs"]))
    rows = -(-len(paradigms) // 5)
    figure = new_figure(0.7 + 1.6 * rows)
    axes = figure.subplots(rows, 5, sharex=True, sharey=True, squeeze=False).flatten()
    for place, (ax, uid) in enumerate(zip(axes, paradigms, strict=False)):
        for number, run, evaluations in found:
            percent = [evaluation["pairs"].get(uid, math.nan) for evaluation in evaluations]
            ax.plot(column(evaluations, "update"), percent, **style(number) | {"markersize": 3.5}, label=run.name)
        ax.axhline(50, color="black", lw=0.8, linestyle=":", label="guessing")
        ax.set_title("\n".join(textwrap.wrap(uid.replace("_", " "), 20)), fontsize=9.5)
        ax.tick_params(labelsize=9.5, labelbottom=place + 5 >= len(paradigms))
    for ax in axes[len(paradigms) :]:
        ax.set_axis_off()
    figure.supxlabel("updates", fontsize=11)
    figure.supylabel("minimal pairs, % right", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def draw_retention(runs: list[Run]):
    """Loss on batches met before, against updates since; beside it what it was when they were trained on last."""
    found = having(runs, lambda run: retention(run.forgetting), "retention", "trained without --track-forgetting")
    if not found:
        return None
    figure = new_figure(4.8)
    ax = figure.subplots()
    for number, run, curve in found:
        own = style(number)
        ax.scatter(*column(run.forgetting, 1, 3), s=8, color=own["color"], alpha=0.3, lw=0)
        since, then, now = column([means for means in curve if means[3] >= FEW], 0, 1, 2)
        ax.plot(since, now, **own, lw=2, label=f"{run.name}: now")
        look = own | {"linestyle": ":", "markerfacecolor": "white"}
        ax.plot(since, then, **look, label=f"{run.name}: when it was last trained on")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel=f"updates since the batch was trained on (lines: means over 1, 2-3, 4-7, ..., of at least {FEW})",
           ylabel="loss on the batch, nats per token")  # fmt: skip
    figure.legend(*drawn(ax), loc="outside upper center", ncols=2)
    return figure


def draw_anchor(runs: list[Run]):
    """How far a batch's repeats take the weights of each layer, and which share of the weights does not move."""

    def measured(run: Run) -> list[list[dict]]:
        some = ([record for record in visit if "unmoved" in record] for visit in run.visits)
        return [records for records in some if records]

    found = having(runs, measured, "anchor", "no distances by layer; --mode=bcp logs them every --norms-every updates")
    if not found:
        return None
    figure = new_figure(4.6)
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(layer for _, _, kept in found for layer in kept[0][0]["anchor_by_layer"]))
    for place, (number, run, kept) in enumerate(found):
        own, shift = style(number), 0.15 * (place - (len(found) - 1) / 2)
        ends = [sorted(records[-1]["anchor_by_layer"].get(name, 0.0) for records in kept) for name in names]
        low, middle, high = ([of[round(q * (len(of) - 1))] for of in ends] for q in (0.1, 0.5, 0.9))
        spans = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        left.errorbar([i + shift for i in range(len(names))], middle, spans, **own | {"linestyle": ""}, capsize=3,
                      label=run.name)  # fmt: skip
        by_repeat: dict[int, list[float]] = {}
        for record in (record for records in kept for record in records):
            by_repeat.setdefault(record["repeat"], []).append(100 * record["unmoved"])
        points = [(repeat, share) for repeat, shares in by_repeat.items() for share in shares]
        right.scatter(*zip(*points, strict=True), s=8, color=own["color"], alpha=0.3, lw=0)
        medians = [(repeat, statistics.median(by_repeat[repeat])) for repeat in sorted(by_repeat)
                   if len(by_repeat[repeat]) >= FEW]  # fmt: skip
        right.plot(*column(medians, 0, 1), **own)
    left.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    left.set_yscale("log")
    left.set(xlabel="layer", ylabel="|W - anchor|, Euclidean norm")
    left.set_title("Distance from the anchor at the end of a batch\n(median and 10 to 90 % of the batches)")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set(xlabel="repeat of the batch (updates)", ylabel="weights, %", ylim=(0, max(1, right.get_ylim()[1])))
    right.set_title(f"Weights exactly at their anchor\n(points: batches; line: median of at least {FEW})")
    figure.legend(*drawn(left), loc="outside lower center", ncols=2)
    return figure


def draw_difficulty(runs: list[Run]):
    """Histogram of the difficulty of the training lines, and lines from all along it."""
    import data

    run = runs[0]
    try:
        corpus = data.open_prepared(Path(run.config["corpus"]["folder"]))
        tokenizer = data.load_tokenizer(corpus.folder / "tokenizer.json")
        lines, kind = corpus.train_lines(), run.flags["difficulty"]
        scores = curriculum.difficulty(corpus, lines, kind, run.flags.get("aoa_file"))
    except (ValueError, KeyError, OSError, ImportError) as error:
        why = f"its prepared corpus is gone, or what its score needs ({data.one_line(error)})"
        print(f"{run.folder}: not in difficulty: {why}")
        return None
    what, order = curriculum.DIFFICULTY[kind][0], scores.argsort(kind="stable")
    figure = new_figure(5.6)
    ax, table = figure.subplots(2, 1, height_ratios=(5, 4))
    most = scores[order[int(0.999 * (len(order) - 1))]] * 1.02  # a few endless lines would flatten the others
    least = min(0, scores[order[0]])
    ax.hist(scores, bins=60, range=(least, most), color=COLOURS[5])
    ax.set(xlabel=f"difficulty: {what}", ylabel="training lines", xlim=(least, most))
    ax.set_title(f"Difficulty of the {len(lines):,} training lines of {run.folder.resolve().name}", parse_math=False)
    table.set_axis_off()
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": COLOURS[1]}
    for place, (letter, share) in enumerate(EXAMPLES.items()):
        index = order[int(share * (len(order) - 1))]
        score, (start, end) = scores[index], corpus.line_start[lines[index] : lines[index] + 2]
        text = "".join(c if c.isprintable() else " " for c in tokenizer.decode(corpus.tokens[start : end - 1].tolist()))
        text = text if len(text) <= 80 else text[:76].rstrip() + " ..."
        ax.axvline(score, color=COLOURS[1], linestyle="--", lw=1.2)
        ax.text(
            score, 0.92 - 0.15 * place, letter, transform=ax.get_xaxis_transform(), ha="center", va="center", bbox=box
        )
        for x, cell, side in ((0.02, letter, "center"), (0.11, f"{score:.1f}", "right"), (0.14, text, "left")):
            table.text(x, 0.92 - 0.17 * place, cell, ha=side, va="center", parse_math=False)
    return figure


FIGURES = {
    "batch": draw_batch, "run": draw_run, "pairs": draw_pairs, "retention": draw_retention, "anchor": draw_anchor,
    "difficulty": draw_difficulty,
}  # fmt: skip


def draw(folders: list[Path], out: Path, batch: int | None = None) -> list[Path]:
    """Draw every figure that the runs have the data for; returns the files. Raises ValueError, OSError."""
    import matplotlib

    runs, files = [read_run(folder) for folder in folders], []
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(run.folder)) for run in runs]
    runs = named(runs)
    out.mkdir(parents=True, exist_ok=True)
    for name, make in (FIGURES | {"batch": functools.partial(draw_batch, batch=batch)}).items():
        with matplotlib.rc_context(STYLE):
            if figure := make(runs):
                files += [out / f"{name}.png", out / f"{name}.svg"]
                figure.savefig(files[-2], dpi=DPI, pil_kwargs={"optimize": True})
                figure.savefig(files[-1], metadata={"Date": None})  # so that equal runs make equal files
    print(f"{len(files)} files in {out}: {', '.join(file.name for file in files)}")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.plot",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, help="folder for the figures (default: figures/ in the first run's folder)")
    parser.add_argument("--batch", type=int, metavar="N", help="batch to look into, from 0, the easiest (default: one "
                        "that converged after many repeats)")  # fmt: skip
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is missing: pip install matplotlib (it is in requirements-dev.txt)")
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: {args.out}: is a file; give a folder")
    try:
        draw(args.runs, args.out or args.runs[0] / "figures", args.batch)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(f"tools.plot: {error}")


if __name__ == "__main__":
    main()
