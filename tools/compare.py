"""Run a grid of trainings and compare them: python -m tools.compare grid.toml

The TOML file names the runs, their flags, the seeds that each is run with, and the run that others are compared to:

    seeds = [0, 1, 2]
    reference = "random"
    flags = "--epochs=10"             # of all runs
    quick = "--epochs=3"              # of all runs with --quick, which takes the first seed only
    average = { averaged = "--last=4" }     # of tools.average, after every run with --keep-weights (default: none)
    program = "-m experiments.e9 train"     # what trains (default: train.py)
    [runs]
    random = "--mode=random"
    "BCP, p = 1" = "--mode=bcp --p=1"

Written are, into out/ or the folder of --results: <name>.json, what every run reached; <name>.md, their table; and the
figure <name>.png and .svg. The table has the scores at the end, and their means over the run's last whole passes (as
many as its last half holds, or that half), since its end may fall on an easy or a hard part of the text: mean and
standard error over seeds, and of the latter the paired difference from the reference with its 95 % interval (Student's
t), with a * if it survives Holm's correction for all of the table. With `average` a run has a second row, for the mean
of its weights. Where all runs have --track-forgetting there are two more columns, over the last quarter: the loss on
batches met before, and how much of it has come since they were left. The figure shows the differences; tools.plot shows
how runs went.

A grid that was stopped goes on where it stood: runs that are in the .json with the same flags are not made again, and
one that was cut in the middle goes on from its checkpoint in out/<name>/. A run whose flags have changed is made anew.
"""

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    import checkpoint
    import flags
    import journal
except ModuleNotFoundError:
    if __package__:
        raise
    sys.exit("tools.compare: run it in the folder of train.py, as python -m tools.compare")

ROOT = Path(__file__).resolve().parents[1]
# Safe for the colour-blind (Okabe and Ito 2008).
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LOOK = {"svg.hashsalt": "bcp", "axes.grid": True, "grid.alpha": 0.3, "font.size": 11}  # of figures
SCIPY = importlib.util.find_spec("scipy") is not None
# What an evaluation has: its name in a table, and its digits there.
MEASURES = {"toy": ("minimal pairs, %", 1), "val_loss": ("validation loss, nats", 2)}


RUNNING: set[subprocess.Popen] = set()  # programs that are at work
STOP: list[int] = []  # signals that came: no program begins any more


def folder(grid: str, run: str, seed: str) -> Path:
    """Where a grid's run with that seed is made."""
    return Path("out") / grid / f"{re.sub(r'[^A-Za-z0-9.]+', '-', run).strip('-')}-s{seed}"


@functools.cache
def code() -> str:
    """A digest of the method's source files, those beside train.py."""
    return hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(ROOT.glob("*.py"))), digest_size=8).hexdigest()


def program(*words: str, threads: int) -> None:
    """Run a program of this repository. Raises RuntimeError with the last line of its complaint."""
    command = [sys.executable, *words]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=env, **pipes) as process:
        RUNNING.add(process)
        if STOP:
            process.terminate()
        said, status = process.communicate()[1].split("\n"), process.returncode
        RUNNING.discard(process)
    if status:
        why = [f"killed by signal {-status}"] if status < 0 else [f"status {status}", *filter(str.strip, said)]
        raise RuntimeError(f"{shlex.join(command)}: {why[-1]}")


def train(out: Path, flags: list[str], threads: int, trainer: str = shlex.quote(str(ROOT / "train.py"))) -> None:
    """One training, or what is left of it. Raises RuntimeError if it fails."""
    resume = ["--resume"] if (out / checkpoint.CONFIG).exists() else []
    program(*shlex.split(trainer), *flags, *resume, f"--out={out}", threads=threads)


def set_aside(*paths: Path) -> None:
    """Give another name to what is in the way, so that it is not lost."""
    for path in filter(Path.exists, paths):
        names = (path.with_name(f"{path.name}.old{n}") for n in itertools.count(1))
        path.rename(free := next(name for name in names if not name.exists()))
        print(f"{path}: what it was is now {free.name}", flush=True)


def average(out: Path, flags: list[str], threads: int) -> dict:
    """What the mean of a run's weights reaches. Raises RuntimeError if tools.average fails."""
    program("-m", "tools.average", str(out), *flags, threads=threads)
    return json.loads((out / "average.json").read_text())


def summary(out: Path) -> dict:
    """What a finished run reached: its evaluations, and how much of the text it saw."""
    records, config = journal.read(out), checkpoint.read_config(out)
    visits, evaluations = journal.visits(records), journal.evaluations(records)
    for evaluation in evaluations:
        before = [record for record in records if record["update"] <= evaluation["update"]]
        evaluation["seen"] = share(len(journal.seen(before)), config)
        evaluation["passes"] = share(len(journal.visits(before)), config) / 100
    last = evaluations[-1]
    again = journal.forgetting([record for record in records if record["update"] >= 0.75 * last["update"]])
    return {
        **{name: last[name] for name in ("val_loss", "toy", "seen", "passes")},
        "repeats": statistics.median(map(len, visits)),
        "unconverged": sum(visit[-1]["done"] == "unconverged" for visit in visits),
        "evaluations": evaluations,
        "met_loss": statistics.fmean(now for *_, now in again) if again else None,
        "forgotten": statistics.fmean(now - left for *_, left, now in again) if again else None,
    }


def late(run: dict, measure: str) -> float | None:
    """The mean of "toy" or "val_loss" over a run's last whole passes through the text: as many as fit into its last
    half; over that half, if none does.
    """
    *_, last = points = run["evaluations"]
    half = [point for point in points if point["update"] >= last["update"] / 2]
    whole = int(last["passes"] - half[0]["passes"] + 1e-9)
    values = [point[measure] for point in half if not whole or point["passes"] > last["passes"] - whole + 1e-9]
    return None if None in values else statistics.fmean(values)


def score(measure: str, mean: str | None, run: dict) -> float | None:
    """What a mean of a run's weights reached, or, without one, the run over its last whole passes."""
    return late(run, measure) if mean is None else (run.get("averaged") or {}).get(mean, {}).get(measure)


def measured(results: dict[str, dict[str, dict]]) -> list[str]:
    """Those of MEASURES that all runs have: text of one's own has no minimal pairs."""
    return [m for m in MEASURES if all(run[m] is not None for seeds in results.values() for run in seeds.values())]


def share(batches: int, config: dict) -> float:
    """So many batches as a share of the training text, percent."""
    flags = config["flags"]
    return 100 * batches / config["batches"] * flags.get("data_share", 1)


def spread(values: list[float | None], digits: int) -> str:
    """Mean and standard error over seeds."""
    if None in values:
        return "-"
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"


def difference(values: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Mean difference from the reference, seed by seed, half of its 95 % interval and its p, by Student's t.

    The last two are NaN with one seed or without scipy.
    """
    gaps = [a - b for a, b in zip(values, reference, strict=True)]
    mean = statistics.fmean(gaps)
    if not SCIPY or len(gaps) < 2:
        return mean, math.nan, math.nan
    from scipy.special import stdtr, stdtrit  # Student's t and its quantile

    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    t = abs(mean) / error if error else math.inf if mean else 0.0
    return mean, float(stdtrit(len(gaps) - 1, 0.975)) * error, 2 * float(stdtr(len(gaps) - 1, -t))


def paired(values: list[float | None], reference: list[float | None], digits: int) -> str:
    """Mean difference from the reference, seed by seed, with its 95 % interval if scipy is there."""
    if None in values + reference or len(values) < 2:
        return "-"
    mean, half, _ = difference(values, reference)
    interval = "" if math.isnan(half) else f" [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"{mean:+.{digits}f}{interval}"


def tested(values: list[float | None], reference: list[float | None], digits: int) -> tuple[str, float]:
    """What `paired` says, and its p: a cell of `markdown`."""
    known = len(values) and None not in values + reference
    return paired(values, reference, digits), difference(values, reference)[2] if known else math.nan


def holm(ps: list[float], level: float = 0.05) -> float:
    """The largest p that survives Holm's correction for all of them; -1 if none does."""
    kept = itertools.takewhile(lambda at: at[1] <= level / (len(ps) - at[0]), enumerate(sorted(ps)))
    return max((p for _, p in kept), default=-1.0)


def cell(name: str) -> str:
    """A name in a Markdown table, as it is."""
    return re.sub(r"([\\|$_*`<])", r"\\\1", " ".join(name.split()))


def markdown(head: list[str], rows: list[list[str | tuple[str, float]]], reference: str = "") -> str:
    """A table. A cell may have its p beside it; it gets a * if it survives Holm's correction for all of the table."""
    ps = [each[1] for row in rows for each in row if type(each) is tuple and not math.isnan(each[1])]
    limit = holm(ps)
    told = [[each if type(each) is str else each[0] + " *" * (each[1] <= limit) for each in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *told)]
    lines.insert(1, "|---" * len(head) + "|")
    if ps:
        kept, against = sum(p <= limit for p in ps), f" with {cell(reference)}" if reference else ""
        lines += ["", f"{len(ps)} comparisons{against}; *: the {kept} that survive Holm's correction."]
    return "\n".join(lines) + "\n"


def in_common(own: dict[str, dict], base: dict[str, dict], value: Callable[[dict], float | None]) -> tuple[list, list]:
    """A value of two runs, over the seeds that both have."""
    both = [seed for seed in own if seed in base]
    return [value(own[seed]) for seed in both], [value(base[seed]) for seed in both]


def table(results: dict[str, dict[str, dict]], reference: str) -> str:
    """The Markdown table of a grid: run -> seed -> what it reached. Differences are over the seeds that both have."""
    tracked = all(run.get("forgotten") is not None for seeds in results.values() for run in seeds.values())
    head, against = ["run"], f"against {cell(reference)}"
    for measure in measured(results):
        head += [f"{MEASURES[measure][0]} at the end", "over whole passes", against]
    head += ["text seen, %", "passes", "median repeats"]
    if tracked:
        head += ["loss on text met, nats", against, "forgotten of it", against]

    def compared(name: str, value: Callable[[dict], float | None], digits: int) -> list:
        """Two cells: a value's mean over the seeds of a run, and its difference from the reference with its p."""
        gap = "" if name == reference else tested(*in_common(results[name], results[reference], value), digits)
        return [spread([value(run) for run in results[name].values()], digits), gap]

    rows = []
    for name, seeds in results.items():
        runs, row = list(seeds.values()), [cell(name)]
        if not runs:
            continue
        means = {mean: [cell(f"{name}, {mean}")] for mean in runs[0].get("averaged") or ()}
        for measure in measured(results):
            digits = MEASURES[measure][1]
            row += [spread([run[measure] for run in runs], digits)]
            row += compared(name, functools.partial(score, measure, None), digits)
            for mean, mean_row in means.items():
                reached, gap = compared(name, functools.partial(score, measure, mean), digits)
                mean_row += [reached, "", gap]
        row += [f"{statistics.fmean(run[key] for run in runs):{form}}"
                for key, form in (("seen", ".0f"), ("passes", ".1f"), ("repeats", ".0f"))]  # fmt: skip
        if tracked:
            row += compared(name, lambda run: run["met_loss"], 2) + compared(name, lambda run: run["forgotten"], 2)
        rows.append(row)
        rows += [mean_row + [""] * (len(head) - len(mean_row)) for mean_row in means.values()]
    return markdown(head, rows, reference)


def save(figure: Any, file: Path) -> None:
    """A figure of matplotlib as .png and .svg; the same runs make the same file, inside of LOOK."""
    for kind in ("png", "svg"):
        figure.savefig(file.with_suffix(f".{kind}"), dpi=120, metadata={"Date": None} if kind == "svg" else None)


def draw(results: dict[str, dict[str, dict]], reference: str, file: Path) -> None:
    """Differences from the reference over whole passes, of means of weights too, and their 95 % intervals.

    Filled marks are of intervals without 0. Without matplotlib there is no figure, and a line that says so.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: matplotlib is missing (pip install matplotlib)")
        return
    measures, others = measured(results), [name for name in results if name != reference and results[name]]
    runs = [run for seeds in results.values() for run in seeds.values()]
    means = [None, *dict.fromkeys(mean for run in runs for mean in run.get("averaged") or ())]
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 1.6 + (0.2 + 0.12 * len(means)) * len(others)), layout="constrained")
        for ax, measure in zip(figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True):
            (unit, digits), unseen = MEASURES[measure], 10 ** -MEASURES[measure][1]
            for (y, name), (place, mean) in itertools.product(enumerate(others), enumerate(means)):
                two = in_common(results[name], results[reference], functools.partial(score, measure, mean))
                if not two[0] or None in two[0] + two[1]:
                    continue
                gap, half, _ = difference(*two)
                look = {"color": COLOURS[2 - place % 3], "fmt": "osD"[place % 3], "capsize": 3, "markersize": 5}
                look |= {} if abs(gap) > half else {"markerfacecolor": "white"}
                what = f"mean of weights: {mean}" if mean else "over the last whole passes"
                y += 0.25 * (place - (len(means) - 1) / 2)
                ax.errorbar(gap, y, xerr=None if math.isnan(half) else half, label=what.replace("$", "\\$"), **look)
            ax.axvline(0, color=COLOURS[0], linewidth=1)
            ax.set_xlim(min(ax.get_xlim()[0], -unseen), max(ax.get_xlim()[1], unseen))
            ax.set_yticks(range(len(others)), [textwrap.fill(name, 42) for name in others], parse_math=False)
            ax.set_ylim(len(others) - 0.4, -0.6)
            level = spread([late(run, measure) for run in results[reference].values()] or [None], digits)
            ax.set_xlabel(f"{unit}: difference from\n{textwrap.fill(reference, 30)} ({level})", parse_math=False)
        shown = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) if means[1:] else {}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, frameon=False)
        save(figure, file)


def read_grid(file: Path, quick: bool) -> tuple[str, dict, dict[tuple[str, str], list[str]]]:
    """The name of a grid, the grid as it stands in its file, and the flags of every run and seed.

    Raises ValueError, one line, for what is not a grid.
    """
    try:
        grid = tomllib.loads(file.read_text())
        seeds, runs, common = grid["seeds"], grid["runs"], shlex.split(grid.get("flags", ""))
        flags = {run: shlex.split(some) for run, some in runs.items()}
        [shlex.split(some) for some in grid.get("average", {}).values()]
        known = grid["reference"] in runs
        whole = seeds and all(type(seed) is int for seed in seeds)
        common += shlex.split(grid.get("quick", "")) if quick else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a grid of runs ({type(error).__name__}: {error}); see --help") from None
    if not known:
        raise ValueError(f"{file}: reference = {grid['reference']!r} is not one of [runs]")
    if not whole:
        raise ValueError(f"{file}: seeds = {seeds!r}: must be a list of whole numbers, such as [0, 1, 2]")
    places = [folder("", run, "").name.casefold() for run in runs]
    if clash := [run for run, place in zip(runs, places, strict=True) if place == "-s" or places.count(place) > 1]:
        raise ValueError(f"{file}: no folder of its own for {clash[-1]!r}; give it other letters or digits (ASCII)")
    name, seeds = (f"{file.stem}-quick", seeds[:1]) if quick else (file.stem, seeds)
    return name, grid, {(run, str(seed)): [*common, *flags[run], f"--seed={seed}"] for seed in seeds for run in runs}


def made(file: Path, grid: dict, wanted: dict[tuple[str, str], list[str]]) -> dict[str, dict[str, dict]]:
    """Of the results in a file, those of runs that are still wanted, with the same flags; run -> seed -> result.

    If there are others, the file is set aside with its table and figure: it may be of another grid of that name.
    """
    try:
        record = json.loads(file.read_text()) if file.exists() else {"grid": {}, "results": {}}
        same = all(record["grid"].get(key) == grid.get(key) for key in ("average", "program"))
        known = record["results"] if same else {}
        count = sum(map(len, record["results"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ValueError(
            f"{file}: damaged ({error}); delete it, and runs in out/{file.stem} are summed up again"
        ) from None
    results: dict[str, dict[str, dict]] = {run: {} for run in grid["runs"]}
    for (run, seed), flags in wanted.items():
        if known.get(run, {}).get(seed, {}).get("flags") == shlex.join(flags):
            results[run][seed] = known[run][seed]
    if sum(map(len, results.values())) < count:
        set_aside(*(file.with_suffix(kind) for kind in (".json", ".md", ".png", ".svg")))
    return results


def make(name: str, run: str, seed: str, flags: list[str], grid: dict, threads: int) -> dict:
    """Train a run of a grid, or what is left of it, and sum it up."""
    out = folder(name, run, seed)
    note, today = Path(f"{out}.json"), {"flags": shlex.join(flags), "code": code()}  # what the folder is of
    was = json.loads(note.read_text()) if note.exists() else {"flags": shlex.join(flags), "code": None}
    if was["flags"] != today["flags"]:
        set_aside(out)
    if not out.exists():
        keep(note, was := today)
    train(out, flags, threads, *filter(None, [grid.get("program")]))
    averaged = {mean: average(out, shlex.split(some), threads) for mean, some in grid.get("average", {}).items()}
    return rounded(was | summary(out) | {"averaged": averaged or None})


def stopped(number: int, _) -> None:
    """A signal ends the programs that are at work, as run_grid then sees."""
    STOP.append(number)
    [process.terminate() for process in list(RUNNING)]


def run_grid(args: argparse.Namespace, name: str, grid: dict, wanted: dict, results: dict, file: Path) -> None:
    """Make what is missing in `results`, and write them, their table and their figure.

    After a failure no run begins, and those at work end; then RuntimeError is raised.
    """
    todo = [job for job in wanted if job[1] not in results[job[0]] and job[0] in (args.only or grid["runs"])]
    taken, began = sum(map(len, results.values())), time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    failed, one_at_a_time = [], threading.Lock()
    print(f"{taken} of {len(wanted)} runs are taken from {file}, {len(todo)} are trained", flush=True)
    if not SCIPY and len(grid["seeds"]) > 1:
        print("no intervals: scipy is missing (pip install scipy)")

    def save() -> None:
        keep(file, {"grid": grid, "results": results})
        if not measured(results):
            raise RuntimeError(f"{args.grid}: nothing to compare: its runs have no score in common, held-out or pairs")

    def work(job: tuple[str, str]) -> None:
        try:
            if not failed and not STOP:
                result = make(name, *job, wanted[job], grid, threads)
                with one_at_a_time:
                    told(*job, result)
        except (RuntimeError, ValueError, OSError) as error:
            failed.append(error)

    def told(run: str, seed: str, result: dict) -> None:
        results[run] = dict(sorted([*results[run].items(), (seed, result)], key=lambda item: int(item[0])))
        save()
        both = [MEASURES[m] + (result[m],) for m in measured({run: {seed: result}})]
        reached = "; ".join(what.replace(",", f" {value:.{digits}f}") for what, digits, value in both)
        count = sum(map(len, results.values())) - taken
        left = math.ceil((time.monotonic() - began) / count * (len(todo) - count) / 60)
        print(f"{run}, seed {seed}: {reached} ({count} of {len(todo)}, {left} min left)", flush=True)

    save()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, todo))
    if STOP or failed:
        raise RuntimeError("" if STOP else failed[0])
    file.with_suffix(".md").write_text(table(results, grid["reference"]))
    draw(results, grid["reference"], file)
    print("\n" + table(results, grid["reference"]))
    if other := sum(run.get("code") != code() for seeds in results.values() for run in seeds.values()):
        print(f"{other} runs were made by other code than today's, or do not say by which; --again makes them anew")


def main() -> None:
    parser = flags.new_parser("tools.compare", __doc__)
    add = parser.add_argument
    add("grid", type=Path, help="the TOML file")
    add("--quick", action="store_true", help="the first seed, with the file's quick flags")
    add("--only", nargs="+", metavar="RUN", help="no other runs of the grid than these (default: all)")
    add("--jobs", type=int, default=1, help="trainings at a time, sharing the cores")
    add("--results", type=Path, default=Path("out"), help="folder of what is written; results has this project's own")
    add("--again", action="store_true", help="make the runs anew; what they were is kept beside")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"argument --jobs: {args.jobs}: must be at least 1")
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stopped)
    try:
        name, grid, wanted = read_grid(args.grid, args.quick)
        runs, file, place = grid["runs"], args.results / f"{name}.json", Path("out") / name
        if wrong := set(args.only or []) - set(runs):
            raise ValueError(f"argument --only: {min(wrong)!r} is not a run of {args.grid}; it has {', '.join(runs)}")
        place.mkdir(parents=True, exist_ok=True)
        with checkpoint.lock(place):
            again = [job for job in wanted if args.again and job[0] in (args.only or runs)]
            set_aside(*(folder(name, *job) for job in again))
            results = made(file, grid, {job: wanted[job] for job in wanted if job not in again})
            run_grid(args, name, grid, wanted, results, file)
    except checkpoint.CheckpointError:
        parser.error(f"{place}: another process is at work on this grid; wait for it or stop it")
    except ValueError as error:
        parser.error(str(error))
    except (RuntimeError, OSError) as error:
        words = shlex.join(["python", "-m", "tools.compare", *(word for word in sys.argv[1:] if word != "--again")])
        why = f"{signal.Signals(STOP[0]).name}: saved; to go on: {words}" if STOP else error
        print(f"tools.compare: {why}", file=sys.stderr)
        sys.exit(128 + STOP[0] if STOP else 1)


def rounded(x):
    """The numbers in a record to four decimals, which is finer than any spread over seeds."""
    if isinstance(x, dict):
        return {name: rounded(value) for name, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else round(x, 4) if isinstance(x, float) else x


def keep(file: Path, record: dict) -> None:
    """Write the results beside, and rename them over the old ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(rounded(record)) + "\n")
    os.replace(beside, file)


if __name__ == "__main__":
    main()
