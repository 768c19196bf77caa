"""E2: the facts about alpha and the anchor, measured on runs on the built-in corpus.

    python -m experiments.e2 --jobs=2          # half an hour on two CPU cores

Writes results/e2.json (every number), e2.md (the tables), e2.png and e2.svg. Goes on where it was stopped.

    fact 1   repeats of a batch against eta; alpha against the sum of the excess; a batch's mean and last loss
    fact 2   the length of AdamW's steps under a constant alpha
    fact 3   the same after an alpha that rose and fell, and with alpha on the learning rate
    anchor   distance from it, batches met and forgetting, over five decades of C
"""

import argparse
import contextlib
import json
import os
import shlex
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import flags
import journal
import train
from tools import compare

OUT, FILE = Path("out/e2"), Path("results/e2.json")
ETAS, THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0), (1.0, 1.5)
PULLS = {"p = 1": "--p=1", "p = 1, prox": "--p=1 --pull=prox", "p = 2": "--p=2"}
DECADES = {
    "p = 1": (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1),
    "p = 1, prox": (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1),
    "p = 2": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-1, 1.0),
}
REPEAT = 20  # of the first batch, which all runs begin with: where distances are compared


def eta_run(eta: float, threshold: float, seed: int) -> str:
    """The flags of a run that looks at eta."""
    return (f"--mode=bcp --recipe=poster --eta={eta:g} --threshold={threshold:g} --seed={seed} "
            "--max-updates=120 --max-repeats=1000 --eval-every=1000")  # fmt: skip


def anchor_run(pull: str, C: float) -> str:
    """The flags of a run that looks at C."""
    flags = f"--mode=bcp --recipe=poster {PULLS[pull]} --C={C:g}" if C else "--mode=bcp --recipe=poster --C=0"
    return f"{flags} --max-updates=300 --norms-every=1 --track-forgetting=20 --eval-every=1000"


def all_runs() -> list[str]:
    """The flags of all runs."""
    runs = [eta_run(eta, 1.0, seed) for eta in ETAS for seed in (0, 1, 2)] + [eta_run(eta, 1.5, 0) for eta in ETAS]
    return runs + [anchor_run("p = 1", 0.0)] + [anchor_run(pull, C) for pull in DECADES for C in DECADES[pull]]


def summary(out: Path) -> dict:
    """What a run did: its visits to batches, how well alpha agrees with the sum of the excess, where it ended."""
    records, its_flags = journal.read(out), checkpoint.read_config(out)["flags"]
    visits, gap, clamped = journal.visits(records), 0.0, 0
    for visit in visits:
        excess = 0.0
        for record in visit:
            excess += record["loss"] - its_flags["goal"]
            gap = max(gap, abs(record["alpha"] - (1 + its_flags["eta"] * excess)))
            if record["alpha"] < 0:  # from here on the clamped value is what the next one starts from
                clamped += 1
                break
    first = {record["repeat"]: record for record in visits[0]}.get(REPEAT, {})
    lost = [now - left for _, _, left, now in journal.forgetting(records)]
    return {
        "flags": its_flags,
        "visits": [[len(v), v[0]["loss"], statistics.fmean(r["loss"] for r in v), v[-1]["loss"]] for v in visits],
        "met": len(visits),
        "unconverged": sum(visit[-1]["done"] == "unconverged" for visit in visits),
        "gap": gap,
        "clamped": clamped,
        "distance": first.get("anchor_dist"),
        "unmoved": first.get("unmoved"),
        "loss": first.get("loss"),
        "forgetting": statistics.fmean(lost) if lost else None,
        "val_loss": journal.evaluations(records)[-1]["val_loss"],
    }


@dataclass
class Given:
    """In alpha's place: one of these alphas for each update; those numbered in `fixed`, from 0, keep the batch."""

    alphas: list[float]
    fixed: range
    updates: int = 0
    alpha: float = 1.0
    repeats: int = 0

    def update(self, loss: float) -> float:
        self.alpha = self.alphas[self.updates]
        self.updates += 1
        self.repeats += 1
        return self.alpha

    def restart(self) -> None:
        self.repeats = 0

    @property
    def done(self) -> str | None:
        return None if self.updates in self.fixed else "given"


def step_lengths(alphas: list[float], fixed: range, on: str, beta2: float, seed: int) -> list[float]:
    """|W' - W|_2 of every update of a plain training, with alpha on the "loss" or on the rate ("lr").

    Each update takes a new batch, 8 blocks of the text in random order; those in `fixed` take the same one.
    """
    usual = "--mode=random --order=shuffled-once --preset=tiny --batch-size=8 --lr=2e-3 --warmup=0 --device=cpu"
    more = f"--weight-decay=0 --norms-every=1 --alpha-on={on} --beta2={beta2:g} --seed={seed}"
    run = train.start(flags.get_args(shlex.split(f"{usual} {more}")))
    run.folder, run.alpha, run.end = None, Given(alphas, fixed), len(alphas)  # nothing is scored or saved
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(journal.Journal(run, Path(folder))) as kept:
        train.train(run, kept, [])
        return [record["step_norm"] for record in journal.read(Path(folder))]


WARM, RISE, AFTER = 60, 80, 100  # updates before alpha moves, while it rises to 10 and falls, and after
PULSE = [1.0] * WARM + [1 + 9 * (1 - abs(2 * k / RISE - 1)) for k in range(RISE)] + [1.0] * AFTER
SHADOWS = {"on the loss, beta2 = 0.95": ("loss", 0.95), "on the loss, beta2 = 0.999": ("loss", 0.999),
           "on the rate, beta2 = 0.95": ("lr", 0.95), "on the rate, beta2 = 0.999": ("lr", 0.999)}  # fmt: skip


def constant_alphas() -> dict[str, list[float]]:
    """The length of every step over that of the same training with alpha = 1, for 100 updates of it."""
    base = step_lengths([1.0] * 100, range(0), "loss", 0.95, seed=0)
    return {
        f"{alpha:g}": [length / one for length, one in zip(lengths, base, strict=True)]
        for alpha in (10.0, 100.0)
        for lengths in [step_lengths([alpha] * 100, range(0), "loss", 0.95, seed=0)]
    }


def shadows() -> dict[str, list[float]]:
    """The length of every step over that of the same training with alpha = 1: geometric mean of three seeds."""
    fixed, ratios = range(WARM, WARM + RISE), {}
    for name, (on, beta2) in SHADOWS.items():
        logs = []
        for seed in (0, 1, 2):
            base = step_lengths([1.0] * len(PULSE), fixed, "loss", beta2, seed)
            moved = step_lengths(PULSE, fixed, on, beta2, seed)
            logs.append(torch.tensor(moved).log() - torch.tensor(base).log())
        ratios[name] = torch.stack(logs).mean(dim=0).exp().tolist()
    return ratios


def mean_and_range(values: list[float], digits: int = 1) -> str:
    """Such as 58.3 (57 to 60)."""
    low, high = min(values), max(values)
    return f"{statistics.fmean(values):.{digits}f}" + (f" ({low:g} to {high:g})" if len(values) > 1 else "")


def tables(kept: dict) -> str:
    """Markdown."""
    runs = kept["runs"]
    rows = ["| eta | repeats of the first batch, threshold 1 | of all batches, mean | threshold 1.5 | of all batches |",
            "|---|---|---|---|---|"]  # fmt: skip
    for eta in ETAS:
        cells = [f"{eta:g}"]
        for threshold, seeds in zip(THRESHOLDS, ((0, 1, 2), (0,)), strict=True):
            some = [runs[eta_run(eta, threshold, seed)] for seed in seeds]
            cells.append(mean_and_range([run["visits"][0][0] for run in some], 0))
            cells.append(f"{statistics.fmean(visit[0] for run in some for visit in run['visits'][:-1]):.1f}")
        rows.append("| " + " | ".join(cells) + " |")
    rows += ["", "| alpha on AdamW | step, over that with alpha = 1 |", "|---|---|"]
    for alpha, ratio in kept["constant"].items():
        mean, first = statistics.geometric_mean(ratio), ratio[:20]
        rows.append(
            f"| constant {alpha} | {mean:.3f} over 100 updates; the first 20: {min(first):.4f} to {max(first):.4f} |"
        )
    for name, ratio in kept["shadows"].items():
        after = ratio[WARM + RISE :]
        places = ", ".join(f"{after[k - 1]:.2f}" for k in (1, 10, 20, 40, 80))
        rows.append(f"| 1 to 10 to 1, {name} | {ratio[WARM + RISE // 2]:.1f} at its height; {places} at the next "
                    "batch's updates 1, 10, 20, 40, 80 |")  # fmt: skip
    rows += ["", f"| pull | C | distance after {REPEAT} repeats of the first batch | weights at the anchor, % | loss | "
             "batches met in 300 updates | unconverged | forgetting, nats |", "|---" * 8 + "|"]  # fmt: skip
    for name, C in [("none", 0.0)] + [(pull, C) for pull in DECADES for C in DECADES[pull]]:
        run = runs[anchor_run("p = 1" if name == "none" else name, C)]
        forgetting = "-" if run["forgetting"] is None else f"{run['forgetting']:+.2f}"
        rows.append(f"| {name} | {C:g} | {run['distance']:.2f} | {100 * run['unmoved']:.0f} | {run['loss']:.2f} | "
                    f"{run['met']} | {run['unconverged']} | {forgetting} |")  # fmt: skip
    return "\n".join(rows) + "\n"


def draw(kept: dict) -> None:
    """Six panels: eta, the windup, the shadow; the distance, the batches and the forgetting against C."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = kept["runs"]
    markers = dict(zip(PULLS, "osD", strict=True))
    colours = dict(zip(PULLS, compare.COLOURS[1:4], strict=True))
    figure, ((eta, windup, shadow), (distance, met, forgetting)) = plt.subplots(
        2, 3, figsize=(12, 7.5), layout="constrained"
    )
    for threshold, marker in zip(THRESHOLDS, "os", strict=True):
        repeats = [runs[eta_run(e, threshold, 0)]["visits"][0][0] for e in ETAS]
        eta.semilogx(ETAS, repeats, marker=marker, label=f"threshold {threshold:g}")
    eta.set(
        xlabel="eta, per nat",
        ylabel="repeats of the first batch",
        ylim=(0, None),
        title="Eta cancels out at threshold 1",
    )
    eta.legend()

    usual = runs[anchor_run("p = 1", 3e-4)]
    some, goal = usual["visits"][:-1], usual["flags"]["goal"]
    windup.axhline(goal, color="black", linewidth=1, label=f"goal, {goal:g}")
    for place, label, marker in ((2, "mean over all repeats", "o"), (3, "last repeat", "v")):
        windup.plot([v[1] for v in some], [v[place] for v in some], marker, label=label, alpha=0.7)
    windup.set(xlabel="first loss on a batch, nats per token", ylabel="loss, nats per token", title="What is paid back")
    windup.legend()

    for (name, ratio), style in zip(kept["shadows"].items(), ("-", "--", "-.", ":"), strict=True):
        shadow.semilogy(range(-RISE, AFTER), ratio[WARM:], style, label="alpha " + name)
    shadow.axvline(0, color="black", linewidth=0.5)
    shadow.set(xlabel="updates since the next batch began", ylabel="length of a step over that with alpha = 1",
               title="Alpha from 1 to 10 to 1, and its shadow")  # fmt: skip
    shadow.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    shadow.legend(fontsize=8)

    for ax, key, label, title in (
        (distance, "distance", f"distance after {REPEAT} repeats", "Where the anchor holds"),
        (met, "met", "batches met in 300 updates", "Where learning stops"),
        (forgetting, "forgetting", "forgetting, nats per token", "What is kept"),
    ):
        for pull, values in DECADES.items():
            points = [(C, runs[anchor_run(pull, C)][key]) for C in values]
            points = [(C, y) for C, y in points if y is not None]
            ax.semilogx(*zip(*points, strict=True), marker=markers[pull], color=colours[pull], label=pull)
        ax.axhline(runs[anchor_run("p = 1", 0.0)][key], color="black", linestyle=":", label="C = 0")
        ax.set(xlabel="C (p = 1: weight per update; p = 2: share)", ylabel=label, title=title)
        ax.legend(fontsize=8)
    for ax in figure.axes:
        ax.grid(alpha=0.3)
    for kind in ("png", "svg"):
        figure.savefig(FILE.with_suffix(f".{kind}"), dpi=130, metadata={"Date": None} if kind == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.e2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, sharing the cores (default: 1)")
    args = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    torch.set_num_threads(threads)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}}
    for part, measure in (("constant", constant_alphas), ("shadows", shadows)):
        if part not in kept:
            kept[part] = measure()
            compare.keep(FILE, kept)

    def work(flags: str) -> tuple[str, dict]:
        out = OUT / flags.replace("--", "").replace(" ", "_")
        compare.train(out, shlex.split(flags), threads)
        return flags, summary(out)

    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(work, flags) for flags in all_runs() if flags not in kept["runs"]]):
            flags, result = done.result()
            kept["runs"][flags] = result
            compare.keep(FILE, kept)
            print(f"{flags}: {result['met']} batches met", flush=True)
    FILE.with_suffix(".md").write_text(tables(kept))
    draw(kept)
    print("\n" + tables(kept))


if __name__ == "__main__":
    main()
