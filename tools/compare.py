"""Run a grid of trainings and compare them: python -m tools.compare experiments/e1.toml

The TOML file names the runs, their flags, the seeds that each is run with, and the run that others are compared to:

    seeds = [0, 1, 2]
    reference = "random"
    flags = "--epochs=10"             # of all runs
    quick = "--epochs=3"              # of all runs with --quick, which takes the first seed only
    [runs]
    random = "--mode=random"
    "BCP, p = 1" = "--mode=bcp --p=1"

Written are results/<name>.json, what every run reached, after each of them; results/<name>.md, their table; and the
figure results/<name>.png and .svg. The table has the scores at the end, and their means over the evaluations of the
run's last quarter, since the end of a run may fall on an easy or a hard part of the text: mean and standard error over
seeds, and of the latter the paired difference from the reference with its 95 % interval (Student's t). A run with
--average-last has a second row, for the mean of its weights. Where all runs have --track-forgetting there are two more
columns, over the last quarter too: the loss on batches met before, and how much of it has come since they were left.

A grid that was stopped goes on where it stood: runs that are in the .json with the same flags are not made again, and
one that was cut in the middle goes on from its checkpoint in out/<name>/.
"""

import argparse
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

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
# Safe for the colour-blind (Okabe and Ito 2008).
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# What an evaluation has: its name in a table, and its digits there.
MEASURES = {"toy": ("minimal pairs, %", 1), "val_loss": ("validation loss, nats", 2)}
# Quantiles of Student's t at 97.5 %, for 1, 2, ... degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def folder(grid: str, run: str, seed: str) -> Path:
    """Where a grid's run with that seed is made."""
    return Path("out") / grid / f"{re.sub(r'[^A-Za-z0-9.]+', '-', run).strip('-')}-s{seed}"


def train(out: Path, flags: list[str], threads: int) -> None:
    """One training, or what is left of it. Raises RuntimeError with the last line of its complaint."""
    command = [sys.executable, str(TRAIN), *flags, "--resume", f"--out={out}"]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")


def summary(out: Path) -> dict:
    """What a finished run reached: its evaluations, and how much of the text it saw."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    updates = [record for record in records if "loss" in record]
    config = json.loads((out / "config.json").read_text())
    seen, coverage, visits = set(), [(0, 0)], []  # batches met; how many, and visits, after each update; its repeats
    for record in updates:
        if record["batch"] is not None:  # drawn blocks, of lfr or a buffer, belong to no batch
            seen.add(record["batch"])
        if record["repeat"] == 1:
            visits.append(0)
        visits[-1] += 1
        coverage.append((len(seen), len(visits)))
    evaluations = [record for record in records if "val_loss" in record]
    again = [
        entry for record in records for entry in record.get("forgetting", [])
        if record["update"] >= 0.75 * len(updates)
    ]  # --track-forgetting: [batch, updates since, loss then, loss now]  # fmt: skip
    for evaluation in evaluations:
        met, visited = coverage[evaluation["update"]]
        evaluation["seen"], evaluation["passes"] = share(met, config), share(visited, config) / 100
    return {
        "val_loss": evaluations[-1]["val_loss"],
        "toy": evaluations[-1]["toy"],
        "seen": evaluations[-1]["seen"],
        "passes": evaluations[-1]["passes"],
        "repeats": statistics.median(visits),
        "unconverged": sum(n >= config["flags"]["max_repeats"] for n in visits),
        "evaluations": evaluations,
        "averaged": next(
            (record for record in reversed(records) if "average_val_loss" in record), None
        ),  # --average-last
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
    """Mean difference from the reference, seed by seed, with its 95 % interval."""
    if None in values + reference or len(values) < 2:
        return "-"
    gaps = [a - b for a, b in zip(values, reference, strict=True)]
    mean, half = statistics.fmean(gaps), T975[len(gaps) - 2] * statistics.stdev(gaps) / len(gaps) ** 0.5
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
        runs, row, mean_row = list(seeds.values()), [name], [f"{name}, averaged"]
        if not runs:
            continue
        for measure in measured(results):
            digits = MEASURES[measure][1]
            row += [spread([run[measure] for run in runs], digits)]
            row += compared(name, lambda run, measure=measure: late(run, measure), digits)
            mean, gap = compared(
                name, lambda run, measure=measure: (run.get("averaged") or {}).get(f"average_{measure}"), digits
            )
            mean_row += [mean, "", gap]
        row += [f"{statistics.fmean(run[key] for run in runs):{form}}"
                for key, form in (("seen", ".0f"), ("passes", ".1f"), ("repeats", ".0f"))]  # fmt: skip
        if tracked:
            row += compared(name, lambda run: run["met_loss"], 2) + compared(name, lambda run: run["forgotten"], 2)
        rows.append(row)
        if all(run.get("averaged") for run in runs):  # --average-last
            rows.append(mean_row + [""] * (len(head) - len(mean_row)))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.compare",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("grid", type=Path, help="the TOML file")
    parser.add_argument(
        "--quick", action="store_true", help="the first seed, with the file's quick flags (default: off)"
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="no other runs of the grid than these (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, sharing the cores (default: 1)")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"argument --jobs: {args.jobs}: must be at least 1")
    try:
        grid = tomllib.loads(args.grid.read_text())
        seeds, runs, reference = grid["seeds"], grid["runs"], grid["reference"]
        common, flags = shlex.split(grid.get("flags", "")), {run: shlex.split(runs[run]) for run in runs}
        if reference not in runs:
            parser.error(f"{args.grid}: reference = {reference!r} is not one of [runs]")
        if wrong := set(args.only or []) - set(runs):
            parser.error(f"argument --only: {sorted(wrong)[0]!r} is not a run of {args.grid}; it has {', '.join(runs)}")
        if not seeds or any(type(seed) is not int for seed in seeds):
            parser.error(f"{args.grid}: seeds = {seeds!r}: must be a list of whole numbers, such as [0, 1, 2]")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"{args.grid}: not a grid of runs ({type(error).__name__}: {error}); see --help")

    name, threads = args.grid.stem, max(1, (os.cpu_count() or 1) // args.jobs)
    if args.quick:
        name, seeds, common = f"{name}-quick", seeds[:1], common + shlex.split(grid.get("quick", ""))
    file = Path("results") / f"{name}.json"
    try:
        known = json.loads(file.read_text())["results"] if file.exists() else {}
    except (ValueError, KeyError, OSError) as error:
        parser.error(f"{file}: damaged ({error}); delete it, and runs in out/{name} are summed up again")
    wanted = {(run, str(seed)): [*common, *flags[run], f"--seed={seed}"] for seed in seeds for run in runs}
    results = {run: {} for run in runs}
    for (run, seed), its_flags in wanted.items():
        if known.get(run, {}).get(seed, {}).get("flags") == shlex.join(its_flags):
            results[run][seed] = known[run][seed]

    todo = [(run, seed) for run, seed in wanted if seed not in results[run] and run in (args.only or runs)]

    def work(job: tuple[str, str]) -> tuple[str, str, dict]:
        run, seed = job
        out = folder(name, run, seed)
        train(out, wanted[job], threads)
        return run, seed, rounded({"flags": shlex.join(wanted[job]), **summary(out)})

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
        file.with_suffix(".md").write_text(table(results, reference))
        draw(results, file)
    except (RuntimeError, OSError) as error:
        sys.exit(f"tools.compare: {error}")
    print("\n" + table(results, reference))


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
