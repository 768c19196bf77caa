"""Which goal is right for a text? Eight texts of different size and kind, each with a few goals around the default.

    python -m experiments.goal ../shared/data/corpus      # hours on one core; a run that was stopped goes on
    python -m experiments.goal ../shared/data/corpus --updates=3 --out=out/goal-try      # whether all of it works

The goals of a text are the loss of a bigram model on the text that it counted ("seen"), and its loss on a tenth that it
has not counted ("unseen", the default), half a nat below that, and half a nat and a nat above. It prints, and writes to
goal.md in --out, the validation loss of the last weights and the share of batches met; the last row has how far a rule
is from the best goal of each text, in the mean and at most.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import curriculum
import data
import journal

# name: (files of the corpus, kilobytes of them, epochs)
TEXTS = {
    "built-in": (None, None, 10),
    "tale": (["gutenberg/Rip_Van_Winkle.txt"], 40, 10),
    "book": (["gutenberg/A_Christmas_Carol.txt"], 160, 10),
    "stories": (["children_stories/african_storybook_en.txt"], 400, 10),
    "encyclopedia": (["wikipedia"], 400, 10),
    "child speech": (["childes/NA_Brown.txt"], 600, 5),
    "films": (["films"], 1500, 3),
    "simple English": (["simple_english"], 1500, 3),
}
RULES = {"seen": None, "unseen - 0.5": -0.5, "unseen": 0.0, "unseen + 0.5": 0.5, "unseen + 1": 1.0}


def cut(corpus: Path, names: list[str], kilobytes: int, to: Path) -> str:
    """About so many kilobytes from the start of the files, as one file; documents stay apart."""
    files = [file for name in names for file in data.corpus_files(corpus / name)]
    text = b"\n\n".join(file.read_bytes() for file in files)[: 1000 * kilobytes]
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(text.rpartition(b"\n")[0] + b"\n")
    return str(to)


def goals(text: str, cache: Path) -> dict[str, float]:
    """Rule -> goal, nats per token."""
    corpus = data.open_prepared(data.prepare(text, cache, propose=2048, quiet=True))
    tokens = curriculum.join(corpus, curriculum.order_lines(corpus, "curriculum", "surprisal", 0))
    seen, unseen = (curriculum.bigram_loss(tokens, corpus.vocab_size, held_out=held) for held in (False, True))
    return {rule: round(seen if above is None else unseen + above, 2) for rule, above in RULES.items()}


def train(out: Path, flags: list[str]) -> dict[str, float]:
    """A run, or what is left of it: its validation loss at the end, and the share of the batches that it met."""
    done = out / "result.json"
    if not done.exists():
        more = ["--resume"] if list(out.glob("checkpoint*.pt")) else ["--overwrite"]
        subprocess.run([sys.executable, "train.py", *flags, *more, f"--out={out}"], check=True)
        records = journal.read(out)
        met = len(journal.seen(records)) / json.loads((out / "config.json").read_text())["batches"]
        loss = journal.evaluations(records)[-1]["val_loss"]
        done.write_text(json.dumps({"val_loss": loss, "met": met, "updates": len(journal.updates(records))}))
    return json.loads(done.read_text())


def table(found: dict[str, dict[str, dict]]) -> str:
    """Text -> rule -> what its run reached, as Markdown; the last row is each rule's mean distance to the best."""
    rows = ["| text | updates | " + " | ".join(RULES) + " |", "|---|---" + "|---" * len(RULES) + "|"]
    behind: dict[str, list[float]] = {rule: [] for rule in RULES}
    for text, runs in found.items():
        best = min(run["val_loss"] for run in runs.values())
        cells = [f"{run['goal']:.2f}: {run['val_loss']:.3f} ({100 * run['met']:.0f} %)" for run in runs.values()]
        rows.append(f"| {text} | {next(iter(runs.values()))['updates']} | " + " | ".join(cells) + " |")
        for rule, run in runs.items():
            behind[rule].append(run["val_loss"] - best)
    means = " | ".join(f"{statistics.fmean(some):.3f}, at most {max(some):.3f}" for some in behind.values())
    return "\n".join([*rows, f"| behind the best, nats | | {means} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/goal"))
    parser.add_argument("--updates", type=int, help="of each run (default: its budget)")
    args = parser.parse_args()
    found = {}
    for name, (files, kilobytes, epochs) in TEXTS.items():
        text = "toy" if files is None else cut(args.corpus, files, kilobytes, args.out / "texts" / f"{name}.txt")
        found[name] = {}
        for rule, goal in goals(text, Path("data/cache")).items():
            flags = [f"--data={text}", "--mode=bcp", "--preset=tiny", f"--epochs={epochs}", f"--goal={goal}"]
            flags += [f"--max-updates={args.updates}"] if args.updates else []
            run = train(args.out / f"{name}-{goal}".replace(" ", "-"), flags)
            found[name][rule] = {"goal": goal} | run
            (args.out / "goal.json").write_text(json.dumps(found, indent=1) + "\n")
        print(table(found), flush=True)
    (args.out / "goal.md").write_text(table(found) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"experiments.goal: {error}")
