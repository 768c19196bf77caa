"""Score a trained run as the BabyLM 2025 challenge does: which of two sentences does the model find more probable?

    python evaluate.py out/bcp-p1-1                                      # the built-in corpus's minimal pairs
    python evaluate.py out/bcp-p1-1 --task blimp wug_adj --data EVAL     # folders EVAL/blimp and so on
    python evaluate.py out/bcp-p1-1 --task all --data EVAL --untrained=5 --compare out/random-1
    python evaluate.py --reference                                       # what the poster reports

A task is a reader, which makes candidates of a file's records, and a scorer, which makes a score of the candidates'
log-probabilities. A candidate's is the sum over the tokens of its completion, those that overlap its characters; the
end-of-text token stands before every text, so that the first word counts too. The rules are those of the official
pipeline (babylm/evaluation-pipeline-2025), but a tie counts one half, where the pipeline gives it to the right side.

Into the run folder go eval-TASK.json (scores, by paradigm too) and eval-TASK.jsonl (every item, one a line).
"""

import argparse
import csv
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

import data

DRAWS = 1000  # of the bootstrap
REFERENCE = """From Yoshida et al. 2025, not measured here; "text avg." also holds fine-tuned tasks:

model                            BLiMP   BLiMP-S   WUG-ADJ   text avg.
GPT-BERT (official baseline)      80.5      73.0      41.2        70.9
GPT-2 (official baseline)         74.9      63.3      50.2        54.7
BCP p = 1                         49.2      50.4      57.5        32.8
BCP p = 2                         52.2      50.2      57.1        32.5"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    # fmt: off
    add = parser.add_argument
    add("run", type=Path, nargs="?", help="run folder, as train.py wrote it")
    add("--task", nargs="+", default=["toy"], metavar="TASK", help="one or several of " + ", ".join(TASKS) + "; or all: "
        "those whose folder is found in --data (default: toy)")
    add("--data", type=Path, help="folder that holds a folder per task, as the challenge has it, or one task's files")
    add("--weights", choices=("last", "average"), default="last", help="average: of --average-last (default: last)")
    add("--untrained", type=int, default=0, metavar="N", help="also score N models of this size and tokenizer as they "
        "are before training; kept beside the prepared corpus's tokenizer (default: 0)")
    add("--compare", type=Path, metavar="OTHER_RUN", help="differences from a run that was scored on the same tasks")
    add("--batch-size", type=int, default=64, help="items scored together (default: 64)")
    add("--reference", action="store_true", help="print the poster's table")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    # fmt: on
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.run is None and not args.reference:
        parser.error("the run folder is missing; give one that train.py wrote")
    for task in args.task:
        if task not in TASKS and task != "all":
            parser.error(f"argument --task: {task!r} is none of {', '.join(TASKS)}, all")
        if task != "toy" and args.data is None and args.run:
            parser.error(f"argument --task: {task} needs --data=FOLDER, the folder of the evaluation files")
    for flag, value, least in (("--untrained", args.untrained, 0), ("--batch-size", args.batch_size, 1)):
        if value < least:
            parser.error(f"argument {flag}: {value}: must be a whole number of at least {least}")
    return args


# --- Log-probabilities ------------------------------------------------------------------------------------------------

# A candidate: the token ids of prefix + completion, and the place of the first one that counts.
Candidate = tuple[list[int], int]


class Encoder:
    """Texts to candidates, with a run's tokenizer."""

    def __init__(self, tokenizer: "tiktoken.Encoding"):  # noqa: F821
        self.tokenizer, self.encode = tokenizer, tokenizer.encode_ordinary
        self.n_bytes = np.array([len(token) for token in tokenizer.token_byte_values()])

    def __call__(self, prefix: str, completion: str) -> Candidate:
        """A completion after a prefix. A token counts when it overlaps the completion's characters."""
        ids = self.encode(prefix + completion)
        ends = np.cumsum(self.n_bytes[ids])
        return ids, int(np.searchsorted(ends, len(prefix.encode()), side="right")) if prefix else 0

    def word(self, context: str, word: str) -> list[Candidate]:
        """A word after a context as the official reading task has it: no space between, and each token of the word a
        candidate of its own, after what is decoded of the text so far and encoded again."""
        pieces = []
        for token in self.encode(word):
            piece = self.tokenizer.decode([token])
            ids = self.encode(context)
            pieces.append(([*ids, self.encode(piece)[0]], len(ids)))
            context += piece
        return pieces


def pack(candidates: list[Candidate], eot: int) -> tuple[list[int], list[int], list[int], list[tuple[int, int, int]]]:
    """One sequence for all candidates: end-of-text, what they all begin with, then the rest of each.

    Returns its tokens, their positions, to which candidate each belongs (from 1; 0: to all), and what is to be read
    from it: triples of (place, the token that follows there, candidate).
    """
    texts, starts = zip(*candidates, strict=True)
    n = len(os.path.commonprefix(texts))  # of lists, too
    n = n if len(set(starts)) == 1 else min(n, *starts)
    tokens, positions, owners = [eot, *texts[0][:n]], list(range(n + 1)), [0] * (n + 1)
    wanted = [(i, texts[0][i], 0) for i in range(starts[0], n)]
    for owner, (ids, start) in enumerate(candidates, 1):
        first = len(tokens)  # place of ids[n]
        wanted += [(first + i - n - 1 if i > n else n, ids[i], owner) for i in range(max(start, n), len(ids))]
        tokens += ids[n:-1]
        positions += range(n + 1, len(ids))
        owners += [owner] * max(0, len(ids) - n - 1)
    return tokens, positions, owners, wanted


@torch_no_grad
def log_probabilities(
    model: "Transformer",
    items: list[list[Candidate]],
    eot: int,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[float]]:
    """log P(completion | prefix) in nats of every candidate of every item; 0 for an empty one.

    What an item's candidates begin with is worked out once for all. Items of like length share a batch.
    """
