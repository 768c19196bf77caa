"""E8b: a multiplier for every block of the text, carried through all passes (feasible learning, arXiv 2501.14912).

    python -m tools.compare experiments/dual.toml --results=results --jobs=2
    python -m experiments.dual score                            # results/dual-scores.json and .md

`train` is train.py with two flags more. --dual=ETA --above=GOAL: the loss of block i counts lambda_i times; lambda_i
begins at 1, and lambda_i <- max(0, lambda_i + ETA (L_i - GOAL)) whenever its loss L_i, nats per token, was seen. BCP's
alpha forgets when a batch is left; this one does not, and there is no anchor. ETA 0 is plain training.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import checkpoint
import curriculum
import data
import evaluate
import flags
from experiments import e7
from machine import pick_device
from tools import compare

FILE = Path("results/dual-scores.json")
COLUMNS = {"loss": "validation loss", "lines, 95 %": "held-out lines, 95 %", "worst tenth": "their worst tenth",
           "rare": "rare tokens", "blocks, 95 %": "training blocks, 95 %", "blocks, most": "at most"}  # fmt: skip


def train_dual(argv: list[str]) -> int:
    """train.py, with every block's loss times its multiplier. A run that was stopped is made anew."""
    import train

    own = argparse.ArgumentParser(allow_abbrev=False)
    own.add_argument("--dual", type=float, default=0.0)
    own.add_argument("--above", type=float, default=0.0)
    given, argv = own.parse_known_args(["--overwrite" if word == "--resume" else word for word in argv])
    multipliers: dict[int, float] = {}

    def loss_and_gradient(run: train.Run, x: torch.Tensor, y: torch.Tensor, stop: bool = False) -> list[float]:
        rows = [int(row) for row in run.stream.rows]
        weights = torch.tensor([multipliers.get(row, 1.0) for row in rows], device=run.device)
        with run.autocast:
            losses = run.forward(x, y, reduction="none").mean(dim=1)  # (B,)
        (weights * losses).mean().backward()
        for row, weight, loss in zip(rows, weights.tolist(), losses.tolist(), strict=True):
            multipliers[row] = max(0.0, weight + given.dual * (loss - given.above))
        return [float(losses.detach().mean()), float(stop)]

    train.loss_and_gradient = loss_and_gradient
    return train.main(flags.get_args(argv))


def score(out: Path) -> dict[str, float]:
    """The tails of a finished run's losses, nats per token: of held-out lines and tokens, of the blocks trained on."""
    config = checkpoint.read_config(out)
    corpus = data.open_prepared(Path(config["corpus"]["folder"]))
    args = argparse.Namespace(**config["flags"])
    model, _, _ = evaluate.load_run(out, pick_device("auto"))
    lines = e7.line_losses(model, corpus)
    tokens = curriculum.join(corpus, curriculum.order_lines(corpus, args.order, args.difficulty, args.seed))
    stream = curriculum.Stream(tokens, args.block_size, args.batch_size)
    counts = np.bincount(tokens, minlength=corpus.vocab_size)
    x, y = curriculum.validation_blocks(corpus, args.block_size)
    rare = np.where((counts[np.maximum(y, 0)] <= np.median(counts[counts > 0])) & (y >= 0), y, -100)
    blocks = []
    with torch.no_grad():
        for batch in range(stream.n_batches):
            stream.seek(0, batch)
            blocks += model(*map(torch.from_numpy, stream.blocks()), reduction="none").mean(dim=1).tolist()
    some = (rare >= 0).any(axis=1)
    return {
        "loss": evaluate.mean_loss(model, x, y),
        "lines, 95 %": float(np.quantile(lines, 0.95)),
        "worst tenth": e7.worst_tenth(lines),
        "rare": evaluate.mean_loss(model, x[some], rare[some]),
        "blocks, 95 %": float(np.quantile(blocks, 0.95)),
        "blocks, most": max(blocks),
    }


def table(kept: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per run, mean and standard error over seeds; then the paired differences from the first one."""
    rows, first = [], next(iter(kept))
    for run, seeds in kept.items():
        rows.append([run, *(compare.spread([one[key] for one in seeds.values()], 3) for key in COLUMNS)])
    for run in list(kept)[1:]:
        rows.append([f"{run}, against {first}"])
        for key in COLUMNS:
            two = compare.in_common(kept[run], kept[first], lambda one, key=key: one[key])
            rows[-1].append(compare.tested(*two, 3))
    return compare.markdown(["run", *COLUMNS.values()], rows)


def main() -> int | None:
    if sys.argv[1:2] == ["train"]:
        return train_dual(sys.argv[2:])
    parser = flags.new_parser("experiments.dual", __doc__)
    parser.add_argument("what", choices=("train", "score"), help="see above; train takes train.py's flags too")
    parser.parse_args()
    grid, kept = Path("results/dual.json"), json.loads(FILE.read_text()) if FILE.exists() else {}
    for run, seeds in json.loads(grid.read_text())["results"].items():
        for seed in seeds:
            if seed not in kept.setdefault(run, {}):
                kept[run][seed] = compare.rounded(score(compare.folder("dual", run, seed)))
                compare.keep(FILE, kept)
    FILE.with_suffix(".md").write_text(table(kept))
    print(table(kept))


if __name__ == "__main__":
    sys.exit(main())
