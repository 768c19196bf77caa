"""The mean of weights that a run has kept: python -m tools.average out/random-1 --last=4

The run was trained with --keep-weights. Into its folder go average.pt, which evaluate.py and tools.export read with
--weights=average, and average.json: which updates were averaged, and what their mean scores.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import checkpoint
import curriculum
import data
import evaluate
from machine import pick_device
from model import Config, Transformer


def last(updates: list[int], count: int) -> list[int]:
    """The last `count` of the updates whose weights were kept. Raises ValueError if there are fewer."""
    if len(updates) < count:
        raise ValueError(f"--last={count}: weights of {len(updates)} updates are kept; give at most as many, or train "
                         "with --keep-weights=evaluations and a smaller --eval-every")  # fmt: skip
    return updates[-count:]


def mean_weights(files: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights in these files, by name. Raises CheckpointError if one is damaged."""
    states = [checkpoint.load(file)["model"] for file in files]
    return {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}


def average(run: Path, chosen: list[int]) -> evaluate.Scores:
    """Write average.pt and average.json of these updates. Raises ValueError, one line, for a damaged run or corpus."""
    config, kept = checkpoint.read_config(run), dict(checkpoint.kept_weights(run))
    corpus = data.open_prepared(Path(config["corpus"]["folder"]))
    x, y = curriculum.validation_blocks(corpus, config["flags"]["block_size"])
    model, mean = Transformer(Config(**config["model"])), mean_weights([kept[update] for update in chosen])
    checkpoint.fill(model, mean, run / checkpoint.AVERAGE)
    model.to(pick_device())
    scores = evaluate.assess(model, x, y, config["flags"]["batch_size"], corpus.pairs, corpus.eot)
    pairs = {uid: score["accuracy"] for uid, score in scores.pairs.items()} if scores.pairs else None
    checkpoint.save(run / checkpoint.AVERAGE, {"model": mean})
    result = {"updates": chosen, "val_loss": scores.val_loss, "toy": scores.toy, "pairs": pairs}
    (run / "average.json").write_text(json.dumps(result, indent=1) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.average",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="N", help="the last N that were kept (default: none)")
    which.add_argument("--all", action="store_true", help="all that were kept (default: off)")
    args = parser.parse_args()
    if args.last is not None and args.last < 1:
        parser.error(f"argument --last: {args.last}: must be at least 1")
    try:
        checkpoint.read_config(args.run)
        kept = [update for update, _ in checkpoint.kept_weights(args.run)]
        chosen = last(kept, len(kept) or 1 if args.all else args.last)
        scores = average(args.run, chosen)
    except ValueError as error:
        parser.error(str(error))
    print(f"mean of the weights at updates {', '.join(map(str, chosen))}: {scores}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"tools.average: {error}")
