"""E5: real text. A part of every source to train on, another one held out; losses by source, and BLiMP.

    python -m experiments.e5 prepare ../shared/data/corpus      # a folder of folders of text, each folder a source
    python -m tools.compare experiments/e5.toml --results=results --jobs=2  # the runs, out/e5/*
    python -m experiments.e5 score ../shared/data/eval          # what they reached: results/e5-tasks.json and .md

Sources are cut into excerpts of some 500 words, and both parts are evenly spaced among them. With --name=e5-gpu they,
the runs and the results are those of e5-gpu.sh, with --name=e10 those of e10.toml.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

import data
import evaluate
from machine import pick_device
from tasks import Encoder
from tools import compare

TASKS = {"blimp": "BLiMP", "blimp_supplement": "supplement", "entity_tracking": "entity tracking"}


def excerpts(source: Path, words: int = 500) -> list[list[str]]:
    """The text of a folder in pieces of consecutive lines, of so many words or a line more."""
    pieces, piece, count = [], [], 0
    for line in data.file_lines(data.corpus_files(source), "strict"):
        if line:
            piece.append(line)
            count += len(line.split())
        if count >= words:
            pieces.append(piece)
            piece, count = [], 0
    return pieces


def parts(pieces: list[list[str]], n: int, held_out: int) -> tuple[list[list[str]], list[list[str]]]:
    """`n` pieces to train on, and `held_out` words, without the lines that are also trained on; both evenly spaced."""
    aside = np.linspace(0, len(pieces) - 1, held_out // 500).astype(int)
    rest = np.setdiff1d(np.arange(len(pieces)), aside)
    train = [pieces[i] for i in rest[np.linspace(0, len(rest) - 1, min(n, len(rest))).astype(int)]]
    known = {line for piece in train for line in piece}
    return train, [[line for line in pieces[i] if line not in known] for i in aside]


def write(file: Path, pieces: list[list[str]]) -> None:
    """Each piece a document."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join("\n".join(piece) for piece in pieces) + "\n", encoding="utf-8", newline="")
    print(f"{file}: {sum(len(line.split()) for piece in pieces for line in piece):,} words")


def prepare(corpus: Path, part: Path, words: int, held_out: int) -> None:
    """part/train/<source>.txt, as large a share of each source, and part/held-out/<source>.txt, equally large."""
    sources = {folder.name: excerpts(folder) for folder in sorted(corpus.iterdir()) if folder.is_dir()}
    share = words / 500 / sum(map(len, sources.values()))
    for name, pieces in sources.items():
        train, aside = parts(pieces, round(share * len(pieces)), held_out)
        write(part / "train" / f"{name}.txt", train)
        write(part / "held-out" / f"{name}.txt", aside)


def loss_by_source(run: Path, part: Path) -> dict[str, float]:
    """Nats per token of every line of the held-out part, each after an end-of-text token."""
    model, tokenizer, _ = evaluate.load_run(run, pick_device("auto"))
    encode, losses = Encoder(tokenizer), {}
    for file in sorted((part / "held-out").glob("*.txt")):
        items = [[encode("", line)] for line in file.read_text().split("\n") if line]
        scores = evaluate.log_probabilities(model, items, model.config.vocab_size - 1)
        losses[file.stem] = -sum(score for (score,) in scores) / sum(len(ids) for [(ids, _)] in items)
    return losses


def score(folder: Path, name: str, tasks: list[str], untrained: int, items: int | None) -> None:
    """Score those runs in results/<name>.json that have not been, and write results/<name>-tasks.json and .md."""
    runs = json.loads(Path(f"results/{name}.json").read_text())["results"]
    file = Path(f"results/{name}-tasks.json")
    kept = json.loads(file.read_text()) if file.exists() else {}
    for run, seed in ((run, seed) for run, seeds in runs.items() for seed in seeds if seed not in kept.get(run, {})):
        out = compare.folder(name, run, seed)
        flags = [str(out), f"--data={folder}", "--task", *tasks, f"--untrained={untrained}"]
        evaluate.main(evaluate.get_args([*flags, *([f"--items={items}"] if items else [])]))
        scores = {task: json.loads((out / f"eval-{task}.json").read_text())["scores"][0] for task in tasks}
        one = {"loss": loss_by_source(out, Path("data") / name)} | {task: row["score"] for task, row in scores.items()}
        if untrained:
            one["untrained"] = {task: row["untrained"] for task, row in scores.items()}
        kept.setdefault(run, {})[seed] = one
        compare.keep(file, kept)
    file.with_suffix(".md").write_text(table({run: kept[run] for run in runs if run in kept}))
    print("\n" + file.with_suffix(".md").read_text())


def table(kept: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row per run, mean and standard error over its seeds; then untrained models, mean and range."""
    first = next(iter(next(iter(kept.values())).values()))
    sources, tasks = list(first["loss"]), [task for task in TASKS if task in first]
    head = ["run", *(source.replace("_", " ") for source in sources), "mean, nats per token"]
    rows = ["| " + " | ".join(head + [TASKS[task] for task in tasks]) + " |", "|---" * (len(head) + len(tasks)) + "|"]
    for run, seeds in kept.items():
        cells = [compare.spread([one["loss"][source] for one in seeds.values()], 2) for source in sources]
        cells += [compare.spread([statistics.fmean(one["loss"].values()) for one in seeds.values()], 2)]
        cells += [compare.spread([one[task] for one in seeds.values()], 1) for task in tasks]
        rows.append(f"| {run} | {' | '.join(cells)} |")
    if bands := first.get("untrained"):
        cells = [f"{statistics.fmean(b):.1f} ({min(b):.1f} to {max(b):.1f})" for b in (bands[task] for task in tasks)]
        rows.append(f"| {len(bands[tasks[0]])} untrained models | {' | '.join([''] * len(head[1:]) + cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.e5",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="prepare|score", help="see above (default: none)")
    one = what.add_parser("prepare", help="cut the two parts out of a corpus", usage=argparse.SUPPRESS)
    one.add_argument("corpus", type=Path, help="folder of folders of text")
    one.add_argument("--words", type=int, default=150_000, help="to train on, at most (default: 150000)")
    one.add_argument("--held-out", type=int, default=3000, help="words of each source (default: 3000)")
    two = what.add_parser("score", help="score the finished runs", usage=argparse.SUPPRESS)
    two.add_argument("eval", type=Path, help="folder with a folder for each task")
    usual = list(TASKS)[:2]
    two.add_argument("--task", nargs="+", choices=TASKS, default=usual, help=f"(default: {' '.join(usual)})")
    two.add_argument("--untrained", type=int, default=0, help="score so many untrained models too (default: 0)")
    two.add_argument("--items", type=int, help="of each task, evenly taken (default: all)")
    for some in (one, two):
        some.add_argument("--name", default="e5", help="of data/NAME, out/NAME and results/NAME-* (default: e5)")
    args = parser.parse_args()
    if not (folder := args.corpus if args.what == "prepare" else args.eval).is_dir():
        parser.error(f"{folder}: no such folder")
    if args.what == "prepare":
        prepare(args.corpus, Path("data") / args.name, args.words, args.held_out)
    else:
        score(args.eval, args.name, args.task, args.untrained, args.items)


if __name__ == "__main__":
    main()
