"""Which goal is right for a text? Six texts of different size and kind, each with a few goals around the default.

    python -m experiments.goal ../shared/data/corpus --jobs=2      # half an hour on two cores; goes on where it stopped
    python -m experiments.goal ../shared/data/corpus --updates=3 --out=out/goal-try      # whether all of it works

The goals of a text are the loss of a bigram model on the text that it counted ("seen"), and its loss on a tenth that it
has not counted ("unseen"), half a nat below that, half a nat above (the default), and a nat above. It prints, and
writes to goal.md in --out, the validation loss of the last weights and the share of batches met; the last row has how
far a rule is from the best goal of each text, in the mean and at most.
"""

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoint
import curriculum
import data
import journal
from tools import compare

BOOKS = ("A_Christmas_Carol", "Black_Beauty", "Peter_Pan", "The_Wonderful_Wizard_of_Oz")

# name: (files of the corpus, kilobytes of them, epochs)
TEXTS = {
    "tales": (["children_stories/fairytaleqa.txt"], 80, 10),
    "four books": ([f"gutenberg/{book}.txt" for book in BOOKS], 240, 10),
    "stories": (["children_stories/african_storybook_en.txt"], 400, 5),
    "encyclopedia": (["wikipedia"], 400, 5),
    "child speech": (["childes/NA_Brown.txt"], 300, 4),
    "films": (["films"], 600, 3),
}
RULES = {"seen": None, "unseen - 0.5": -0.5, "unseen": 0.0, "unseen + 0.5": 0.5, "unseen + 1": 1.0}


def cut(corpus: Path, names: list[str], kilobytes: int, to: Path) -> str:
    """About so many kilobytes, as one file: the beginning of each of the files; documents stay apart."""
    files = [file for name in names for file in data.corpus_files(corpus / name)]
    texts = [file.read_bytes()[: 1000 * kilobytes // len(files)].rpartition(b"\n")[0] for file in files]
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(b"\n\n".join(texts) + b"\n")
    return str(to)


def goals(text: str, cache: Path) -> dict[str, float]:
    """Rule -> goal, nats per token."""
    corpus = data.open_prepared(data.prepare(text, cache, propose=2048, quiet=True))
    tokens = curriculum.join(corpus, curriculum.order_lines(corpus, "curriculum", "surprisal", 0))
    seen, unseen = (curriculum.bigram_loss(tokens, corpus.vocab_size, held_out=held) for held in (False, True))
    return {rule: round(seen if above is None else unseen + above, 2) for rule, above in RULES.items()}


def train(out: Path, flags: list[str], threads: int) -> dict[str, float]:
    """A run, or what is left of it: its validation loss at the end, and the share of the batches that it met."""
    compare.train(out, flags, threads)
    records = journal.read(out)
    met = len(journal.seen(records)) / checkpoint.read_config(out)["batches"]
    loss = journal.evaluations(records)[-1]["val_loss"]
    return {"val_loss": loss, "met": met, "updates": len(journal.updates(records))}


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
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, sharing the cores (default: 1)")
    args = parser.parse_args()
    file = args.out / "goal.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    more = [f"--max-updates={args.updates}"] if args.updates else []
    with ThreadPoolExecutor(args.jobs) as pool:
        begun = {}
        for name, (files, kilobytes, epochs) in TEXTS.items():
            if name not in found:
                text = (
                    "toy" if files is None else cut(args.corpus, files, kilobytes, args.out / "texts" / f"{name}.txt")
                )
                flags = [f"--data={text}", "--mode=bcp", "--preset=tiny", f"--epochs={epochs}", *more]
                for rule, goal in goals(text, Path("data/cache")).items():
                    out = args.out / f"{name}-{goal}".replace(" ", "-")
                    run = pool.submit(train, out, [*flags, f"--goal={goal}"], threads)
                    begun.setdefault(name, {})[rule] = goal, run
        for name, runs in begun.items():
            found[name] = {rule: {"goal": goal} | run.result() for rule, (goal, run) in runs.items()}
            compare.keep(file, found)
            (args.out / "goal.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"experiments.goal: {error}")
