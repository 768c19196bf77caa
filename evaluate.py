"""Score a trained run on zero-shot tasks: of two sentences, does the model find the grammatical one more probable?

    python evaluate.py out/bcp-p1-1 --task toy
    python evaluate.py out/bcp-p1-1 --task blimp --data PATH      # a folder of BLiMP's JSONL files

As in the official BabyLM pipeline, a sentence scores the sum of the log-probabilities of its tokens. The end-of-text
token stands before every sentence, so that the first word counts too. A tie counts one half, and ties are counted.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

import data

TASKS = ("toy", "blimp")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    parser.add_argument("--task", choices=TASKS, default="toy", help="what to score (default: toy)")
    parser.add_argument("--data", type=Path, help="folder of JSONL files (--task blimp)")
    parser.add_argument("--weights", choices=("last", "average"), default="last", help="average: of --average-last")
    parser.add_argument("--json", type=Path, help="where the result goes (default: <run>/eval-<task>.json)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.task == "blimp" and args.data is None:
        parser.error("--task=blimp needs --data=FOLDER, the folder of BLiMP's JSONL files")
    return args


ARGS = get_args() if __name__ == "__main__" else None  # wrong flags end here, before the slow import of torch

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import checkpoint  # noqa: E402
from model import Config, Transformer, pick_device  # noqa: E402


@torch.no_grad()
def mean_loss(model: Transformer, x: np.ndarray, y: np.ndarray, batch_size: int = 32) -> float | None:
    """Mean cross-entropy in nats per token over blocks (N, T); targets of -100 do not count. None if none counts."""
    device = model.model.norm.weight.device
    total, counted = 0.0, int((y != -100).sum())
    for i in range(0, len(x), batch_size):
        xb, yb = torch.from_numpy(x[i : i + batch_size]), torch.from_numpy(y[i : i + batch_size])
        total += model(xb.to(device), yb.to(device), reduction="none").cpu().double().sum().item()
    return total / counted if counted else None


@torch.no_grad()
def log_probabilities(
    model: Transformer, sequences: list[list[int]], eot: int, batch_size: int = 64, progress: bool = False
) -> np.ndarray:
    """log P(sequence after end-of-text) in nats, float64, one per sequence of token ids; 0 for an empty one.

    Sequences of like length share a batch; what is padded stands at the right, where causal attention never looks.
    """
    device = model.model.norm.weight.device
    scores = np.zeros(len(sequences))
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in tqdm(range(0, len(sequences), batch_size), unit="batch", disable=None if progress else True):
        some = by_length[start : start + batch_size]
        longest = max(1, len(sequences[some[-1]]))
        x = np.full((len(some), longest), eot)
        y = np.full((len(some), longest), -100)
        for row, i in enumerate(some):
            n = len(sequences[i])
            x[row, 1:n] = sequences[i][: n - 1] if n else []
            y[row, :n] = sequences[i]
        losses = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device), reduction="none")  # (B, T)
        scores[some] = -losses.cpu().double().sum(dim=1).numpy()
    return scores


def score_pairs(
    model: Transformer, pairs: dict[str, list[list[list[int]]]], eot: int, progress: bool = False
) -> dict[str, dict[str, float]]:
    """For every paradigm of [good ids, bad ids] pairs: accuracy in percent (a tie counts one half), pairs, ties."""
    flat = [ids for paradigm in pairs.values() for pair in paradigm for ids in pair]
    scores = log_probabilities(model, flat, eot, progress=progress).reshape(-1, 2)
    result, start = {}, 0
    for name, paradigm in pairs.items():
        good, bad = scores[start : start + len(paradigm)].T
        start += len(paradigm)
        accuracy = 100 * float((good > bad).mean() + (good == bad).mean() / 2)
        result[name] = {"accuracy": accuracy, "pairs": len(paradigm), "ties": int((good == bad).sum())}
    return result


@dataclass
class Scores:
    """What a run is judged by while it trains."""

    val_loss: float | None  # nats per token; None without validation text
    pairs: dict | None  # of score_pairs; None without minimal pairs

    @property
    def toy(self) -> float | None:
        """Mean accuracy over the paradigms, percent."""
        return fmean(score["accuracy"] for score in self.pairs.values()) if self.pairs else None

    def __str__(self) -> str:
        shown = "no validation text" if self.val_loss is None else f"validation loss {self.val_loss:.3f}"
        return shown + (f", minimal pairs {self.toy:.1f} %" if self.pairs else "")


def assess(model: Transformer, x: np.ndarray, y: np.ndarray, batch_size: int, pairs: dict | None, eot: int) -> Scores:
    """Validation loss on blocks x, y (N, T) and the scores of tokenised minimal pairs."""
    model.eval()
    scores = Scores(mean_loss(model, x, y, batch_size), score_pairs(model, pairs, eot) if pairs else None)
    model.train()
    return scores


def read_pairs(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The (good, bad) sentences of every JSONL file in a folder, by paradigm. Raises DataError naming file and line."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise data.DataError(f"--data={folder}: no *.jsonl file there; give a folder of BLiMP's JSONL files")
    paradigms = {}
    for file in files:
        pairs = []
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    item = json.loads(line)
                    pairs.append((item["sentence_good"] + "", item["sentence_bad"] + ""))
                except (ValueError, KeyError, TypeError):
                    wanted = "a JSON object with sentence_good and sentence_bad"
                    raise data.DataError(f"{file}, line {number}: not {wanted}") from None
        if not pairs:
            raise data.DataError(f"{file}: empty; a JSON object per line was expected")
        paradigms[file.stem] = pairs
    return paradigms


def load_run(folder: Path, device: torch.device, weights: str = "last"):
    """The model, the tokenizer and the config of a run folder. Raises DataError or CheckpointError, one line each."""
    config = checkpoint.read_config(folder)
    file = folder / (checkpoint.AVERAGE if weights == "average" else checkpoint.NAME)
    state = checkpoint.load(file)
    model = Transformer(Config(**config["model"]))
    checkpoint.fill(model, state["model"], file)
    return model.to(device).eval(), data.load_tokenizer(folder / "tokenizer.json"), config


def print_table(scores: dict[str, dict[str, float]]) -> None:
    width = max(map(len, scores))
    print(f"{'paradigm':{width}}   accuracy   pairs    ties")
    for name, score in scores.items():
        print(f"{name:{width}} {score['accuracy']:8.1f} % {score['pairs']:7} {score['ties']:7}")
    mean = fmean(score["accuracy"] for score in scores.values())
    pairs, ties = (sum(score[key] for score in scores.values()) for key in ("pairs", "ties"))
    print(f"{f'mean of {len(scores)} paradigms':{width}} {mean:8.1f} % {pairs:7} {ties:7}")


def main(args: argparse.Namespace) -> None:
    try:
        device = pick_device(args.device)
        model, tokenizer, config = load_run(args.run, device, args.weights)
        if args.task == "toy":
            import toy

            paradigms = {
                uid: [(pair["sentence_good"], pair["sentence_bad"]) for pair in pairs]
                for uid, pairs in toy.minimal_pairs().items()
            }
        else:
            paradigms = read_pairs(args.data)
    except ValueError as error:
        get_parser().error(str(error))
    encode = tokenizer.encode_ordinary
    ids = {uid: [[encode(good), encode(bad)] for good, bad in pairs] for uid, pairs in paradigms.items()}
    scores = score_pairs(model, ids, model.config.vocab_size - 1, progress=True)
    print_table(scores)
    target = args.json or args.run / f"eval-{args.task}.json"
    mean = fmean(score["accuracy"] for score in scores.values())
    result = {"run": str(args.run), "task": args.task, "weights": args.weights, "mean": mean, "paradigms": scores}
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    try:
        main(ARGS)
    except OSError as error:
        sys.exit(f"evaluate.py: {error}")
