"""E6: what the paper's failure is made of: the figure of the answer, and three facts about the paper's form.

    python -m tools.compare experiments/e6.toml --results=results --jobs=2  # first: the runs that the answer is made of
    python -m experiments.e6 --jobs=2                        # the facts (14 short runs), the tables, the figures

Writes results/e6-answer.md, .png and .svg, and results/e6-facts.json, .md, .png and .svg. Goes on where it was stopped.

    windup   the share of visits that converge, against the goal
    steps    the length of the optimizer's steps, from the first update of a visit to the tenth
    anchor   how far from it a visit ends
"""

import argparse
import json
import os
import shlex
import statistics
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import checkpoint
import journal
from tools import compare

OUT, FACTS, GRID = Path("out/e6-facts"), Path("results/e6-facts.json"), Path("results/e6.json")
GOALS = (0.3, 0.693, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # nats per token
USUAL = "--mode=bcp --recipe=paper --order=random --epochs=5 --norms-every=1 --eval-every=1000"
PAPER, BEST = "bcp, p = 1, random order", "random"  # the two ends of the distance that a change can recover
FORMS = {
    "p = 1": "--p=1",
    "p = 1, C = 0": "--p=1 --C=0",
    "p = 1, C at 0.15 of the rate": "--p=1 --C=7.5e-5",
    "p = 1, moments carried": "--p=1 --moments=carried",
    "p = 2": "--p=2",
    "p = 2, C = 0.05": "--p=2 --C=0.05",
}


def goal_run(goal: float) -> str:
    """The flags of a run that looks at the goal."""
    return f"{USUAL} --goal={goal:g}"


def all_runs() -> list[str]:
    """The flags of all runs."""
    return [goal_run(goal) for goal in GOALS] + [f"{USUAL} {form}" for form in FORMS.values()]


def summary(out: Path) -> dict:
    """What a run's visits were like. Steps are root mean squares over all weights, in units of the learning rate: 1 is
    a step of the whole rate in every weight. Distances from the anchor are in the same unit."""
    records, size = journal.read(out), checkpoint.read_config(out)["parameters"] ** 0.5
    visits = [visit for visit in journal.visits(records) if visit[-1]["done"]]

    def mean(field: str, repeat: int) -> float:
        some = [visit[repeat][field] / visit[repeat]["lr"] / size for visit in visits if len(visit) > repeat]
        return statistics.fmean(some)

    longest = max(map(len, visits))
    return {
        "visits": len(visits),
        "converged": sum(visit[-1]["done"] == "converged" for visit in visits) / len(visits),
        "steps": [mean("step_norm", repeat) for repeat in range(longest)],
        "distances": [mean("anchor_dist", repeat) for repeat in range(longest)],
        "val_loss": journal.evaluations(records)[-1]["val_loss"],
    }


def facts(runs: dict[str, dict]) -> str:
    """Markdown: the windup, then steps and distances."""
    rows = ["| goal, nats per token | visits | converged, % | validation loss, nats |", "|---|---|---|---|"]
    for goal in GOALS:
        run = runs[goal_run(goal)]
        rows.append(f"| {goal:g} | {run['visits']} | {100 * run['converged']:.0f} | {run['val_loss']:.2f} |")
    rows += ["", "| form | step 1 | step 2 | step 5 | step 10 | distance from the anchor after 1 | 2 | 5 | 10 | "
             "validation loss, nats |", "|---" * 10 + "|"]  # fmt: skip
    for name, form in FORMS.items():
        run = runs[f"{USUAL} {form}"]
        cells = [f"{run[what][k - 1]:.2f}" for what in ("steps", "distances") for k in (1, 2, 5, 10)]
        rows.append(f"| {name} | {' | '.join(cells)} | {run['val_loss']:.2f} |")
    return "\n".join(rows) + "\n"


def pairs(runs: dict[str, dict], mean: str | None) -> dict[str, float]:
    """Minimal pairs by seed, percent: of the last weights, or of a mean of those kept."""
    return {seed: run["averaged"][mean]["toy"] if mean else run["toy"] for seed, run in runs.items()}


def recovered(results: dict, row: str, measure: str) -> str:
    """Which share of the distance from PAPER to BEST a row's last weights make good, percent, by "toy" or "val_loss".

    The mean over seeds and its 95 % interval (Student's t).
    """
    own, worst, best = ({seed: run[measure] for seed, run in results[name].items()} for name in (row, PAPER, BEST))
    both = [seed for seed in own if seed in worst and seed in best]
    shares = [100 * (own[seed] - worst[seed]) / (best[seed] - worst[seed]) for seed in both]
    return compare.paired(shares, [0.0] * len(shares), 0) if shares[1:] else "".join(f"{x:+.0f}" for x in shares)


def answer(results: dict) -> str:
    """Markdown: pairs of the last weights and of both means, the loss, and the shares of the distance made good."""
    head = "pairs, last weights, % | mean of all | mean of the last nine | validation loss, nats | made good"
    rows = [f"| run | seeds | {head}: pairs, % | loss, % |", "|---" * 8 + "|"]
    for row, seeds in results.items():
        scores = [pairs(seeds, mean) for mean in (None, "mean of all", "mean of the last nine")]
        cells = [compare.spread(list(score.values()), 1) for score in scores]
        cells += [compare.spread([run["val_loss"] for run in seeds.values()], 2)]
        cells += ["" if row in (PAPER, BEST) else recovered(results, row, measure) for measure in ("toy", "val_loss")]
        rows.append(f"| {row} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def draw_answer(results: dict, groups: dict[str, list[str]], file: Path) -> None:
    """A row for each run: minimal pairs of the last weights and of the mean of all, each seed and their mean."""
    plt = pyplot()
    names = [name for group in groups.values() for name in group if results.get(name)]
    heights = {}
    for i, name in enumerate(names):
        group = next(k for k, some in enumerate(groups.values()) if name in some)
        heights[name] = -i - 1.4 * group
    figure, ax = plt.subplots(figsize=(9, 0.32 * len(names) + 2), layout="constrained")
    for mean, label, colour, marker in (
        (None, "last weights", compare.COLOURS[2], "o"),
        ("mean of all", "mean of all weights kept, as in the paper", compare.COLOURS[1], "D"),
    ):
        for name in names:
            scores = list(pairs(results[name], mean).values())
            ax.plot(scores, [heights[name]] * len(scores), marker, color=colour, markersize=3, alpha=0.4)
        middle = [statistics.fmean(pairs(results[name], mean).values()) for name in names]
        ax.plot(middle, list(heights.values()), marker, color=colour, markersize=7, label=label)
    for title, group in groups.items():
        top = max((heights[name] for name in group if name in heights), default=None)
        if top is not None:
            ax.text(0.03, top + 0.75, title, fontweight="bold", fontsize=9, transform=ax.get_yaxis_transform())
    ax.axvline(50, color="black", linestyle=":", linewidth=1)
    ax.text(50.3, min(heights.values()) - 0.9, "guessing", fontsize=8)
    ax.set_yticks(list(heights.values()), names, fontsize=9)
    ax.set(xlabel="minimal pairs, %", xlim=(48, 100), ylim=(min(heights.values()) - 1.2, 1.4))
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, file)


def draw_facts(runs: dict[str, dict], file: Path) -> None:
    """Three panels: the windup, the steps, the distance from the anchor."""
    figure, (windup, steps, anchor) = pyplot().subplots(1, 3, figsize=(12, 4), layout="constrained")
    windup.plot(GOALS, [100 * runs[goal_run(goal)]["converged"] for goal in GOALS], "o-", color=compare.COLOURS[2])
    windup.axvline(0.693, color="black", linestyle=":", linewidth=1)
    windup.text(0.75, 90, "the paper's\ngoal", fontsize=8)
    windup.set(xlabel="goal, nats per token", ylabel="visits that converge, %", ylim=(-3, 103),
               title="No goal up to 2.5 nats is reached")  # fmt: skip
    for i, (name, form) in enumerate(FORMS.items()):
        run = runs[f"{USUAL} {form}"]
        for ax, what in ((steps, "steps"), (anchor, "distances")):
            repeats = range(1, len(run[what]) + 1)
            ax.plot(repeats, run[what], marker="osD^v<"[i], color=compare.COLOURS[i], markersize=4, label=name)
    steps.set(xlabel="repeat", ylabel="length of the step, in learning rates", ylim=(0, None), title="Fresh moments")
    anchor.set(
        xlabel="repeat", ylabel="distance from the anchor, in learning rates", title="The anchor", ylim=(0, None)
    )
    anchor.legend(fontsize=8)
    for ax in figure.axes:
        ax.grid(alpha=0.3)
    save(figure, file)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bcp"  # so that equal runs make equal files
    import matplotlib.pyplot as plt

    return plt


def save(figure, file: Path) -> None:
    for kind in ("png", "svg"):
        figure.savefig(file.with_suffix(f".{kind}"), dpi=130, metadata={"Date": None} if kind == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.e6", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, sharing the cores (default: 1)")
    args = parser.parse_args()
    if not GRID.exists():
        parser.error(f"{GRID}: not there; make it first: python -m tools.compare experiments/e6.toml --results=results")
    results = json.loads(GRID.read_text())["results"]
    names = list(results)
    table, one = names.index("one repeat"), names.index("one repeat, moments carried")
    groups = {"the paper's table": names[:table], "p = 1 in random order, one change (p = 2: C)": names[table:one],
              "more than one": names[one:]}  # fmt: skip
    Path("results/e6-answer.md").write_text(answer(results))
    draw_answer(results, groups, Path("results/e6-answer"))
    kept = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)

    def work(flags: str) -> tuple[str, dict]:
        out = OUT / flags.replace("--", "").replace(" ", "_")
        compare.train(out, shlex.split(flags), threads)
        return flags, summary(out)

    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(work, flags) for flags in all_runs() if flags not in kept]):
            flags, result = done.result()
            kept[flags] = result
            compare.keep(FACTS, kept)
            print(f"{flags}: {100 * result['converged']:.0f} % of {result['visits']} visits converged", flush=True)
    FACTS.with_suffix(".md").write_text(facts(kept))
    draw_facts(kept, FACTS)
    print("\n" + answer(results) + "\n" + facts(kept))


if __name__ == "__main__":
    main()
