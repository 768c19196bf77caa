"""The mean of weights that a run has kept: python -m tools.average out/random-1 --last=4

The run was trained with --keep-weights. Into its folder go average.pt, which evaluate.py and tools.export read with
--weights=average, and average.json: which updates were averaged, and what their mean scores.
"""

import json
from pathlib import Path

import torch

import checkpoint
import curriculum
import data
import evaluate
import journal
from flags import new_parser, number
from machine import pick_device
from model import Config, Transformer


def last(updates: list[int], count: int) -> list[int]:
    """The last `count` of the updates whose weights were kept. Raises ValueError if there are fewer."""
    if len(updates) < count:
        raise ValueError(f"--last={count}: weights of {len(updates)} updates are kept; give at most as many, or train "
                         "with --keep-weights=evaluations and a smaller --eval-every")  # fmt: skip
    return updates[-count:]


def mean_weights(files: list[Path], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of the weights in these files, by name. CheckpointError if one is damaged, or not of `own`'s sizes."""
    states = [checkpoint.load(file).get("model") for file in files]
    for file, state in zip(files, states, strict=True):
        checkpoint.check(state, own, file)
    return {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}


def average(run: Path, chosen: list[int]) -> evaluate.Scores:
    """Write average.pt and average.json of these updates. Raises ValueError, one line, for a damaged run or corpus."""
    config, kept = checkpoint.read_config(run), dict(checkpoint.kept_weights(run))
    corpus = data.open_prepared(Path(config["corpus"]["folder"]))
    x, y = curriculum.validation_blocks(corpus, config["flags"]["block_size"])
    model = Transformer(Config(**config["model"]))
    mean = mean_weights([kept[update] for update in chosen], model.state_dict())
    model.load_state_dict(mean)
    model.to(pick_device())
    scores = evaluate.assess(model, x, y, config["flags"]["batch_size"], corpus.pairs, corpus.eot)
    pairs = {uid: score["accuracy"] for uid, score in scores.pairs.items()} if scores.pairs else None
    checkpoint.save(run / checkpoint.AVERAGE, {"model": mean})
    result = {"updates": chosen, "val_loss": scores.val_loss, "toy": scores.toy, "pairs": pairs}
    checkpoint.write(run / "average.json", (json.dumps(journal.finite(result), indent=1) + "\n").encode())
    return scores


def main() -> None:
    parser = new_parser("tools.average", __doc__)
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=number(int, 1), metavar="N", help="the last N that were kept (default: none)")
    which.add_argument("--all", action="store_true", help="all that were kept (default: off)")
    args = parser.parse_args()
    try:
        checkpoint.read_config(args.run)
        kept = [update for update, _ in checkpoint.kept_weights(args.run)]
        chosen = last(kept, len(kept) or 1 if args.all else args.last)
        scores = average(args.run, chosen)
    except ValueError as error:
        parser.error(str(error))
    print(f"mean of the weights at updates {', '.join(map(str, chosen))}: {scores}")


if __name__ == "__main__":
    main()
