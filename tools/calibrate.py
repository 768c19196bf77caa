"""How hard the built-in corpus's minimal pairs are: python -m tools.calibrate

What can be had from neighboring words alone, by chance, and by learning: the accuracy of n-gram models, untrained
models and trained models on each paradigm, in percent. Chance is 50. The three trainings take a few minutes each. They
are kept in out/calibrate, and one that was stopped goes on.
"""

import argparse
import dataclasses
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

import checkpoint
import data
import evaluate
import journal
import toy
from model import PRESETS, Transformer

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def count_ngrams(lines: list[str], order: int) -> Counter:
    """Counts of all n-grams up to the order, over lines between two "<s>"; the first "<s>" is context only."""
    counts: Counter = Counter()
    for line in lines:
        words = ["<s>", *line.split(), "<s>"]
        for n in range(1, order + 1):
            counts.update(tuple(words[i - n : i]) for i in range(max(n, 2), len(words) + 1))
    return counts


def log_probability(sentence: str, counts: Counter, order: int, total: int) -> float:
    """Nats of a sentence and its end, with backing off: p(w | h) = (c(h w) + p(w | shorter h)) / (c(h) + 1).

    total is the number of words that were counted.
    """
    words = ["<s>", *sentence.split(), "<s>"]
    nats = 0.0
    for i in range(1, len(words)):
        p = (counts[(words[i],)] + 1) / (total + len(counts))
        for n in range(2, min(order, i + 1) + 1):
            history = tuple(words[i - n + 1 : i])
            p = (counts[(*history, words[i])] + p) / (counts[history] + 1)
        nats += math.log(p)
    return nats


def accuracy(pairs: list[dict], score: Callable[[str], float]) -> float:
    """Percent of the pairs in which the good sentence scores higher; a tie (to a billionth) counts one half."""
    gaps = [score(pair["sentence_good"]) - score(pair["sentence_bad"]) for pair in pairs]
    return 100 * sum(0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps) / len(gaps)


def ngram_scores(lines: list[str], order: int) -> dict[str, float]:
    """UID -> accuracy, in percent, of the n-gram model of the lines."""
    counts = count_ngrams(lines, order)
    total = sum(count for gram, count in counts.items() if len(gram) == 1)
    return {
        uid: accuracy(pairs, lambda sentence: log_probability(sentence, counts, order, total))
        for uid, pairs in toy.minimal_pairs().items()
    }


def untrained_scores(seeds: int) -> list[dict[str, float]]:
    """For each seed UID -> accuracy, in percent, of a model of the tiny preset with random weights."""
    preset = PRESETS["tiny"]
    corpus = data.open_prepared(data.prepare("toy", Path("data/cache"), propose=preset.vocab_size))
    config, scores = dataclasses.replace(preset, vocab_size=corpus.vocab_size), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        result = evaluate.score_pairs(Transformer(config), corpus.pairs, corpus.eot)
        scores.append({uid: score["accuracy"] for uid, score in result.items()})
    return scores


def trained_scores(seed: int, *flags: str) -> tuple[dict[str, float], dict[str, float]]:
    """UID -> accuracy, in percent, of `--mode=random` at default settings, or these flags: at a quarter and at the end.

    Raises CalledProcessError if the training fails; it has said why.
    """
    out = Path("out/calibrate") / f"random-s{seed}"
    command = [sys.executable, str(TRAIN), "--mode=random", f"--seed={seed}", f"--out={out}", *flags]
    if (out / checkpoint.CONFIG).exists():
        command.append("--resume")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    evaluations = journal.evaluations(journal.read(out))
    quarter = min(evaluations, key=lambda record: abs(record["update"] - evaluations[-1]["update"] / 4))
    return quarter["pairs"], evaluations[-1]["pairs"]


def calibrate() -> None:
    """Print the table: a row for each paradigm, a column for each kind of model."""
    lines = [line for scene in toy.documents() for line in scene]
    columns = [[ngram_scores(lines, order)] for order in (1, 2, 3)]
    columns += [untrained_scores(5), *map(list, zip(*map(trained_scores, range(3)), strict=True))]
    for column in columns:  # the mean over the paradigms, seed by seed
        for scores in column:
            scores["mean"] = fmean(scores.values())
    print(f"{'paradigm':34}{'unigram':>9}{'bigram':>9}{'trigram':>9}{'untrained (5 seeds)':>23}"
          f"{'random, a quarter':>23}{'random (3 seeds)':>23}")  # fmt: skip
    for uid in (*toy.minimal_pairs(), "mean"):
        row = f"{uid:34}"
        for column in columns:
            values = [scores[uid] for scores in column]
            row += f"{fmean(values):9.1f}"
            row += f" ({min(values):4.1f}-{max(values):5.1f})" if len(values) > 1 else ""
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.calibrate",
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.parse_args()
    try:
        calibrate()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"tools.calibrate: {error}")


if __name__ == "__main__":
    main()
