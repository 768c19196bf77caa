"""Run a grid of trainings and compare them: python -m tools.compare experiments/e1.toml

The TOML file names the runs, their flags, the seeds that each is run with, and the run that others are compared to:

    seeds = [0, 1, 2]
    reference = "random"
    flags = "--epochs=10"             # of all runs
    quick = "--epochs=3"              # of all runs with --quick, which takes the first seed only
    average = { averaged = "--last=4" }     # of tools.average, after every run with --keep-weights (default: none)
    [runs]
    random = "--mode=random"
    "BCP, p = 1" = "--mode=bcp --p=1"

Written are results/<name>.json, what every run reached, after each of them; results/<name>.md, their table; and the
figure results/<name>.png and .svg. The table has the scores at the end, and their means over the evaluations of the
run's last quarter, since the end of a run may fall on an easy or a hard part of the text: mean and standard error over
seeds, and of the latter the paired difference from the reference with its 95 % interval (Student's t). With `average` a
run has a second row, for the mean of its weights. Where all runs have --track-forgetting there are two more columns,
over the last quarter too: the loss on batches met before, and how much of it has come since they were left.

A grid that was stopped goes on where it stood: runs that are in the .json with the same flags are not made again, and
one that was cut in the middle goes on from its checkpoint in out/<name>/.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import checkpoint
import journal

ROOT = Path(__file__).resolve().parents[1]
# Safe for the colour-blind (Okabe and Ito 2008).
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SCIPY = importlib.util.find_spec("scipy") is not None
# What an evaluation has: its name in a table, and its digits there.
MEASURES = {"toy": ("minimal pairs, %", 1), "val_loss": ("validation loss, nats", 2)}


def folder(grid: str, run: str, seed: str) -> Path:
    """Where a grid's run with that seed is made."""
    return Path("out") / grid / f"{re.sub(r'[^A-Za-z0-9.]+', '-', run).strip('-')}-s{seed}"


def program(*words: str, threads: int) -> None:
    """Run a program of this repository. Raises RuntimeError with the last line of its complaint."""
    command = [sys.executable, *words]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")


def train(out: Path, flags: list[str], threads: int) -> None:
    """One training, or what is left of it. Raises RuntimeError if it fails."""
    resume = ["--resume"] if (out / checkpoint.CONFIG).exists() else []
    program(str(ROOT / "train.py"), *flags, *resume, f"--out={out}", threads=threads)


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
    """The mean of "toy" or "val_loss" over the evaluations of the run's last quarter."""
    last = run["evaluations"][-1]["update"]
    values = [record[measure] for record in run["evaluations"] if record["update"] >= 0.75 * last]
    return None if None in values else statistics.fmean(values)


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


def paired(values: list[float | None], reference: list[float | None], digits: int) -> str:
    """Mean difference from the reference, seed by seed, with its 95 % interval if scipy is there."""
    if None in values + reference or len(values) < 2:
        return "-"
    gaps = [a - b for a, b in zip(values, reference, strict=True)]
    mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    if not SCIPY:
        return f"{mean:+.{digits}f}"
    from scipy.special import stdtrit  # the quantile of Student's t

    half = stdtrit(len(gaps) - 1, 0.975) * error
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def table(results: dict[str, dict[str, dict]], reference: str) -> str:
    """The Markdown table of a grid: run -> seed -> what it reached. Differences are over the seeds that both have."""
    tracked = all(run.get("forgotten") is not None for seeds in results.values() for run in seeds.values())
    head = ["run"]
    for measure in measured(results):
        head += [f"{MEASURES[measure][0]} at the end", "over the last quarter", f"against {reference}"]
    head += ["text seen, %", "passes", "median repeats"]
    if tracked:
        head += ["loss on text met, nats", f"against {reference}", "forgotten of it", f"against {reference}"]

    def compared(name: str, value: Callable[[dict], float | None], digits: int) -> list[str]:
        """Two cells: a value's mean over the seeds of a run, and its difference from the reference."""
        own, base = ({seed: value(run) for seed, run in results[which].items()} for which in (name, reference))
        both = [seed for seed in own if seed in base]
        gap = "" if name == reference else paired([own[seed] for seed in both], [base[seed] for seed in both], digits)
        return [spread(list(own.values()), digits), gap]

    rows = []
    for name, seeds in results.items():
        runs, row = list(seeds.values()), [name]
        if not runs:
            continue
        means = {mean: [f"{name}, {mean}"] for mean in runs[0].get("averaged") or ()}
        for measure in measured(results):
            digits = MEASURES[measure][1]
            row += [spread([run[measure] for run in runs], digits)]
            row += compared(name, lambda run, measure=measure: late(run, measure), digits)
            for mean, mean_row in means.items():
                score, gap = compared(name, lambda run, m=mean, x=measure: run["averaged"][m][x], digits)
                mean_row += [score, "", gap]
        row += [f"{statistics.fmean(run[key] for run in runs):{form}}"
                for key, form in (("seen", ".0f"), ("passes", ".1f"), ("repeats", ".0f"))]  # fmt: skip
        if tracked:
            row += compared(name, lambda run: run["met_loss"], 2) + compared(name, lambda run: run["forgotten"], 2)
        rows.append(row)
        rows += [mean_row + [""] * (len(head) - len(mean_row)) for mean_row in means.values()]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def draw(results: dict[str, dict[str, dict]], file: Path) -> None:
    """Minimal pairs and validation loss, against updates and against the text seen, where repeats count once.

    Mean over seeds, and a band of one standard error. Without matplotlib there is no figure, and a line that says so.
    """
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is missing (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bcp"  # so that equal runs make equal files
    import matplotlib.pyplot as plt

    drawn = {name: [run["evaluations"] for run in seeds.values()] for name, seeds in results.items() if seeds}
    measures = measured(results)
    axes_of = [("update", "updates"), ("passes", "text seen, in passes through the training text")]
    size = {"figsize": (10, 0.5 + 3.5 * len(measures)), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(measures), 2, sharex="col", sharey="row", **size)
    for row, measure in zip(axes, measures, strict=True):
        for ax, (along, x_label) in zip(row, axes_of, strict=True):
            for i, (name, runs) in enumerate(drawn.items()):
                if along == "passes":  # a logarithmic axis has no 0
                    runs = [run[1:] for run in runs]
                x = [
                    statistics.fmean(points) for points in zip(*([e[along] for e in run] for run in runs), strict=True)
                ]
                columns = list(zip(*([e[measure] for e in run] for run in runs), strict=True))
                mean = [statistics.fmean(values) for values in columns]
                error = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in columns]
                line = {
                    "color": COLOURS[i % 7],
                    "linestyle": ["-", "--", ":"][i // 7 % 3],
                    "marker": "osD^v<>P*"[i % 9],
                }
                ax.plot(x, mean, label=name, markersize=4, **line)
                if along == "update":
                    low, high = ([m + sign * e for m, e in zip(mean, error, strict=True)] for sign in (-1, 1))
                    ax.fill_between(x, low, high, color=COLOURS[i % 7], alpha=0.2, linewidth=0)
            ax.grid(alpha=0.3)
            if along == "passes":
                ax.set_xscale("log")
                for axis_ticks in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
                    axis_ticks(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "125" else "")
            if measure == measures[-1]:
                ax.set_xlabel(x_label)
        row[0].set_ylabel(MEASURES[measure][0])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    for kind in ("png", "svg"):
        figure.savefig(file.with_suffix(f".{kind}"), dpi=130, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools.compare",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    add = parser.add_argument
    add("grid", type=Path, help="the TOML file")
    add("--quick", action="store_true", help="the first seed, with the file's quick flags (default: off)")
    add("--only", nargs="+", metavar="RUN", help="no other runs of the grid than these (default: all)")
    add("--jobs", type=int, default=1, help="trainings at a time, sharing the cores (default: 1)")
    return parser


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
    name, seeds = (f"{file.stem}-quick", seeds[:1]) if quick else (file.stem, seeds)
    return name, grid, {(run, str(seed)): [*common, *flags[run], f"--seed={seed}"] for seed in seeds for run in runs}


def made(file: Path, grid: dict, wanted: dict[tuple[str, str], list[str]]) -> dict[str, dict[str, dict]]:
    """Of the results in a file, those of runs that are still wanted, with the same flags; run -> seed -> result."""
    try:
        record = json.loads(file.read_text()) if file.exists() else {"grid": {}, "results": {}}
        known = record["results"] if record["grid"].get("average") == grid.get("average") else {}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{file}: damaged ({error}); delete it, and runs in out/{file.stem} are summed up again"
        ) from None
    results: dict[str, dict[str, dict]] = {run: {} for run in grid["runs"]}
    for (run, seed), flags in wanted.items():
        if known.get(run, {}).get(seed, {}).get("flags") == shlex.join(flags):
            results[run][seed] = known[run][seed]
    return results


def make(name: str, run: str, seed: str, flags: list[str], means: dict[str, str], threads: int) -> dict:
    """Train a run of a grid, or what is left of it, and sum it up."""
    out = folder(name, run, seed)
    train(out, flags, threads)
    averaged = {mean: average(out, shlex.split(some), threads) for mean, some in means.items()}
    return rounded({"flags": shlex.join(flags), **summary(out), "averaged": averaged or None})


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"argument --jobs: {args.jobs}: must be at least 1")
    try:
        name, grid, wanted = read_grid(args.grid, args.quick)
        runs, file = grid["runs"], Path("results") / f"{name}.json"
        if wrong := set(args.only or []) - set(runs):
            raise ValueError(f"argument --only: {min(wrong)!r} is not a run of {args.grid}; it has {', '.join(runs)}")
        results = made(file, grid, wanted)
    except ValueError as error:
        parser.error(str(error))
    todo = [(run, seed) for run, seed in wanted if seed not in results[run] and run in (args.only or runs)]
    means, threads = grid.get("average", {}), max(1, (os.cpu_count() or 1) // args.jobs)
    if not SCIPY and len(grid["seeds"]) > 1:
        print("no intervals: scipy is missing (pip install scipy)")

    def work(job: tuple[str, str]) -> tuple[str, str, dict]:
        return *job, make(name, *job, wanted[job], means, threads)

    try:
        pool = ThreadPoolExecutor(args.jobs)
        try:
            for done in as_completed([pool.submit(work, job) for job in todo]):
                run, seed, result = done.result()
                results[run] = dict(sorted([*results[run].items(), (seed, result)], key=lambda item: int(item[0])))
                keep(file, {"grid": grid, "results": results})
                both = [MEASURES[m] + (result[m],) for m in measured({run: {seed: result}})]
                reached = "; ".join(what.replace(",", f" {value:.{digits}f}") for what, digits, value in both)
                print(f"{run}, seed {seed}: {reached}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, nothing more is begun
        keep(file, {"grid": grid, "results": results})
        file.with_suffix(".md").write_text(table(results, grid["reference"]))
        draw(results, file)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"tools.compare: {error}")
    print("\n" + table(results, grid["reference"]))


def rounded(x):
    """The numbers in a record to four decimals, which is finer than any spread over seeds."""
    if isinstance(x, dict):
        return {name: rounded(value) for name, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else round(x, 4) if isinstance(x, float) else x


def keep(file: Path, record: dict) -> None:
    """Write the results beside, and rename them over the old ones."""
    file.parent.mkdir(exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(rounded(record)) + "\n")
    os.replace(beside, file)


if __name__ == "__main__":
    main()
