"""Run a grid of trainings and compare them: python -m tools.compare experiments/regimes.toml

The TOML file names the runs, their flags, the seeds that each is run with, and the run that others are compared to:

    seeds = [0, 1, 2]
    reference = "random"
    flags = "--epochs=10"             # of all runs
    [runs]
    random = "--mode=random"
    "BCP, p = 1" = "--mode=bcp --p=1"

Run folders lie in out/<name of the file>/; a grid that was stopped goes on where it stood, in the middle of a run too.
Written are results/<name>.json, the evaluations and the coverage of every run, and results/<name>.md, their table:
scores at the end, and of minimal pairs also the mean over the evaluations of the run's last quarter; mean and standard
error over seeds, and the paired difference from the reference with its 95 % interval (Student's t).
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
# Quantiles of Student's t at 97.5 %, for 1, 2, ... degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


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
    config = json.loads((out / "config.json").read_text())
    visits: dict[tuple[int, int], int] = {}
    for record in records:
        if "loss" in record:
            visit = (record["epoch"], record["batch"])
            visits[visit] = visits.get(visit, 0) + 1
    evaluations = [record for record in records if "val_loss" in record]
    late = [record["toy"] for record in evaluations if record["update"] >= 0.75 * evaluations[-1]["update"]]
    return {
        "val_loss": evaluations[-1]["val_loss"],
        "toy": evaluations[-1]["toy"],
        "late": statistics.fmean(late) if None not in late else None,
        "seen": 100 * len({batch for _, batch in visits}) / config["batches"],
        "passes": len(visits) / config["batches"],
        "repeats": statistics.median(visits.values()),
        "unconverged": sum(n >= config["flags"]["max_repeats"] for n in visits.values()),
        "evaluations": evaluations,
    }


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


def table(results: dict[str, list[dict]], reference: str) -> str:
    """The Markdown table of a grid."""
    rows = [
        f"| run | minimal pairs, % | over the last quarter, % | against {reference} | validation loss, nats | "
        f"against {reference} | batches seen, % | passes | median repeats |",
        "|---" * 9 + "|",
    ]
    base = {key: [run[key] for run in results[reference]] for key in ("toy", "val_loss")}
    for name, runs in results.items():
        column = {key: [run[key] for run in runs] for key in runs[0]}
        cells = [name, spread(column["toy"], 1), spread(column["late"], 1), paired(column["toy"], base["toy"], 1)]
        cells += [spread(column["val_loss"], 2), paired(column["val_loss"], base["val_loss"], 2)]
        cells += [f"{statistics.fmean(column['seen']):.0f}", f"{statistics.fmean(column['passes']):.1f}"]
        cells += [f"{statistics.fmean(column['repeats']):.0f}"]
        if name == reference:
            cells[3] = cells[5] = ""
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.compare",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("grid", type=Path, help="the TOML file")
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
        if not seeds or any(type(seed) is not int for seed in seeds):
            parser.error(f"{args.grid}: seeds = {seeds!r}: must be a list of whole numbers, such as [0, 1, 2]")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"{args.grid}: not a grid of runs ({type(error).__name__}: {error}); see --help")

    name, threads = args.grid.stem, max(1, (os.cpu_count() or 1) // args.jobs)
    jobs = {(run, seed): Path("out") / name / f"{re.sub(r'[^A-Za-z0-9.]+', '-', run).strip('-')}-s{seed}"
            for seed in seeds for run in runs}  # fmt: skip

    def work(job: tuple[str, int]) -> dict:
        train(jobs[job], [*common, *flags[job[0]], f"--seed={job[1]}"], threads)
        result = summary(jobs[job])
        print(f"{jobs[job]}: pairs {result['toy']} %, validation loss {result['val_loss']}", flush=True)
        return result

    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            finished = dict(zip(jobs, pool.map(work, jobs), strict=True))
        Path("results").mkdir(exist_ok=True)
    except (RuntimeError, OSError) as error:
        sys.exit(f"tools.compare: {error}")
    results = {run: [finished[run, seed] for seed in seeds] for run in runs}
    record = {"grid": grid, "results": results}
    (Path("results") / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (Path("results") / f"{name}.md").write_text(table(results, reference))
    print("\n" + table(results, reference))


if __name__ == "__main__":
    main()
