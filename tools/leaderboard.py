"""The nine columns of the 2026 leaderboard for a run, of what was scored: python -m tools.leaderboard out/random-1

Read are the results of evaluate.py and tools.aoa in the run's folder, by the rules of 2026, of the weights that the run
has now, and of all items. The overall score is the mean over the columns; one that is missing counts 0. The
leaderboard's code is not public: the columns and the mean are as third parties describe them.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import evaluate
import flags
from machine import pick_device

COLUMNS = {  # the rows that each is the mean of
    "BLiMP": ("blimp",),
    "BLiMP supplement": ("blimp_supplement",),
    "EWoK": ("ewok",),
    "entity tracking": ("entity_tracking",),
    "COMPS": ("comps",),
    "GLUE": ("glue",),
    "Global PIQA": ("global_piqa_parallel", "global_piqa_nonparallel"),
    "reading": ("reading_eye_tracking", "reading_self_paced"),
    "AoA": ("aoa",),
}


def known_scores(run: Path, weights: str) -> tuple[dict[str, float], list[str]]:
    """Row -> score of the run's weights as they are now; and the files of other weights or of some items, not used.

    Raises ValueError, one line, for a damaged run or result.
    """
    model, _, _ = evaluate.load_run(run, pick_device("cpu"), weights)
    digest, scores, unused = evaluate.digest_of(model), {}, []
    for file in sorted(run.glob("eval-*.json")):
        try:
            result = json.loads(file.read_text())
            if result["weights"] != weights or result.get("rules") != "2026":
                continue
            if result["digest"] != digest or "/" in result["files"]:  # of every so-many-th item
                unused.append(file.name)
                continue
            scores |= {row["name"]: row["score"] for row in result["scores"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}: damaged, not a result of evaluate.py; score the run again") from None
    return scores, unused


def columns(scores: dict[str, float]) -> dict[str, float | None]:
    """Column -> score, None where a row of it is missing."""
    whole = {name: scores.keys() >= {*rows} for name, rows in COLUMNS.items()}
    return {name: fmean(scores[row] for row in rows) if whole[name] else None for name, rows in COLUMNS.items()}


def main() -> None:
    parser = flags.new_parser("tools.leaderboard", __doc__)
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    parser.add_argument("--weights", choices=("last", "average"), default="last", help="average: of average.pt")
    parser.add_argument("--glue", type=flags.number(float, 0), help="the mean of the challenge's fine-tuning tasks, "
                        "which its own scripts give (default: missing)")  # fmt: skip
    args = parser.parse_args()
    try:
        scores, unused = known_scores(args.run, args.weights)
    except ValueError as error:
        parser.error(str(error))
    if args.glue is not None:
        scores["glue"] = args.glue
    found = columns(scores)
    for name, score in found.items():
        print(f"{name:17} {'missing' if score is None else f'{score:7.2f}'}")
    there = [score for score in found.values() if score is not None]
    print(f"{'overall':17} {sum(there) / len(COLUMNS):7.2f}   what is missing counts 0")
    if there:
        print(f"{'':17} {fmean(there):7.2f}   the mean over the {len(there)} that are there")
    if unused:
        print(f"of other weights or of some items alone, not used: {', '.join(unused)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"tools.leaderboard: {error}")
