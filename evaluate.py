"""Score a trained run as the BabyLM challenge does: which of two sentences does the model find more probable?

    python evaluate.py out/bcp-p1-1                                      # the built-in corpus's minimal pairs
    python evaluate.py out/bcp-p1-1 --data EVAL                          # all tasks in EVAL/blimp_filtered and so on
    python evaluate.py out/bcp-p1-1 --data EVAL --task blimp --untrained=5 --compare out/random-1

The tasks are in tasks.py. A candidate's log-probability is the sum over the tokens of its completion, those that
overlap its characters. The end-of-text token stands before every text, so that the first word counts too. The rules are
those of the official pipelines of 2026 or 2025, but a tie counts its share (one half of two).

Into the run folder go eval-TASK.json (scores, by paradigm too, and of which weights) and eval-TASK.jsonl (decisions).
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

import data
import tasks
from flags import device_name, new_parser, number
from tasks import TASKS, Candidate, Row

# --- Command line -----------------------------------------------------------------------------------------------------


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("evaluate.py", __doc__)
    # fmt: off
    add = parser.add_argument
    add("run", type=Path, help="run folder, as train.py wrote it")
    add("--task", nargs="+", metavar="TASK", help=f"some of {', '.join(TASKS)}; or all: those whose folder is in "
        "--data (default: all with --data, else toy)")
    add("--data", type=Path, help="a folder with a folder per task, as the challenge has it, or with one task's files; "
        f"{tasks.WHERE} (default: none; toy needs none)")
    add("--rules", choices=("2026", "2025"), default="2026", help="the year whose challenge is followed; the wug tasks "
        "are of 2025 alone, global_piqa of 2026")
    add("--weights", choices=("last", "average"), default="last", help="average: of average.pt, which "
        "python -m tools.average RUN --last=4 writes")
    add("--untrained", type=number(int, 0), default=0, metavar="N", help="beside every score that of N models of this "
        "size and tokenizer as they are before training; kept beside the corpus's tokenizer")
    add("--compare", type=Path, metavar="OTHER", help="differences from another run, scored on the same tasks before "
        "(default: none)")
    add("--items", type=number(int, 1), metavar="N", help="about N of each task's items, evenly taken (default: all)")
    add("--batch-size", type=number(int, 1), default=64, help="items scored together")
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    # fmt: on
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    args.task = args.task or ["all" if args.data else "toy"]
    for task in args.task:
        if task not in (*TASKS, "all"):
            parser.error(f"argument --task: {task!r}: must be some of {', '.join(TASKS)}, or all")
        if task != "all" and args.rules not in TASKS[task].rules:
            parser.error(f"argument --task: {task} is not among the tasks of {args.rules}; give the other --rules")
        if task != "toy" and args.data is None:
            parser.error(f"argument --task: {task} needs --data=FOLDER; {tasks.WHERE}")
    return args


ARGS = get_args() if __name__ == "__main__" else None  # wrong flags end here, before the slow import of torch

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import checkpoint  # noqa: E402
from machine import pick_device, reuse_memory, short_of_memory  # noqa: E402
from model import Config, Transformer  # noqa: E402

# --- Log-probabilities ------------------------------------------------------------------------------------------------


def pack(candidates: list[Candidate], eot: int) -> tuple[list[int], list[int], list[int], list[tuple[int, int, int]]]:
    """One sequence for all candidates of an item: end-of-text, what they begin with in common, then the rest of each.

    Returns its tokens, their positions in their texts, their owners (which candidate, from 1; 0: all of them), and what
    is to be read from it: triples of a place, the token that follows there, and its owner.
    """
    texts, starts = zip(*candidates, strict=True)
    shared = len(os.path.commonprefix(texts))  # works on lists too
    if len(set(starts)) > 1:
        shared = min(shared, *starts)
    tokens, positions, owners = [eot, *texts[0][:shared]], [*range(shared + 1)], [0] * (shared + 1)
    wanted = [(i, texts[0][i], 0) for i in range(starts[0], shared)]
    for owner, (ids, start) in enumerate(candidates, 1):
        behind = len(tokens) - shared - 1  # how much further right than in its own text a token stands
        for i in range(max(start, shared), len(ids)):
            wanted.append((i + behind if i > shared else shared, ids[i], owner))
        tokens += ids[shared:-1]
        positions += range(shared + 1, len(ids))
        owners += [owner] * (len(tokens) - len(owners))
    return tokens, positions, owners, wanted


@torch.no_grad()
def log_probabilities(
    model: Transformer, items: list[list[Candidate]], eot: int, batch_size: int = 64, progress: str | None = None
) -> list[list[float]]:
    """log P(completion | prefix) in nats of every candidate of every item; 0 for an empty one, minus infinity for NaN.

    Items of like length share a batch. progress: the name before a progress bar.
    """
    device, scores = model.model.norm.weight.device, [[] for _ in items]
    packed = [pack(candidates, eot) for candidates in items]
    by_length = sorted(range(len(items)), key=lambda i: len(packed[i][0]))
    bar = tqdm(total=len(items), desc=progress, unit="item", disable=None if progress else True)
    for begin in range(0, len(items), batch_size):
        some = by_length[begin : begin + batch_size]
        shape = len(some), len(packed[some[-1]][0])
        tokens, positions, owners = np.full(shape, eot), np.zeros(shape, int), np.full(shape, -1)
        rows, places, targets, sums = [], [], [], []
        for row, i in enumerate(some):
            n, wanted = len(packed[i][0]), packed[i][3]
            tokens[row, :n], positions[row, :n], owners[row, :n] = packed[i][:3]
            rows += [row] * len(wanted)
            places += [place for place, _, _ in wanted]
            targets += [target for _, target, _ in wanted]
            sums += [(row, owner) for _, _, owner in wanted]
        tokens, positions, owners = (torch.from_numpy(a).to(device) for a in (tokens, positions, owners))
        mask = (owners[:, None] == 0) | (owners[:, None] == owners[:, :, None])  # of the same candidate, or of all
        hidden = model.hidden(tokens, positions, mask.tril())[rows, places]  # (K, C)
        losses = torch.nn.functional.cross_entropy(
            model.head(hidden).float(), torch.tensor(targets, dtype=torch.long, device=device), reduction="none"
        )
        totals = np.zeros((len(some), 1 + max(len(items[i]) for i in some)))
        np.subtract.at(totals, tuple(np.array(sums, int).reshape(-1, 2).T), losses.cpu().double().numpy())
        for row, i in enumerate(some):
            sums_of_item = totals[row, 0] + totals[row, 1 : 1 + len(items[i])]
            scores[i] = np.nan_to_num(sums_of_item, nan=-math.inf, neginf=-math.inf).tolist()
        bar.update(len(some))
    bar.close()
    return scores


@torch.no_grad()
def mean_loss(model: Transformer, x: np.ndarray, y: np.ndarray, batch_size: int = 32) -> float | None:
    """Mean cross-entropy in nats per token over blocks (N, T); targets of -100 do not count. None if none counts."""
    device = model.model.norm.weight.device
    total, counted = 0.0, int((y != -100).sum())
    for i in range(0, len(x), batch_size):
        xb, yb = torch.from_numpy(x[i : i + batch_size]), torch.from_numpy(y[i : i + batch_size])
        total += model(xb.to(device), yb.to(device), reduction="none").cpu().double().sum().item()
    return total / counted if counted else None


# --- While a run trains -----------------------------------------------------------------------------------------------


def score_pairs(model: Transformer, pairs: dict[str, list[list[list[int]]]], eot: int) -> dict[str, dict[str, float]]:
    """Accuracy (percent), items and ties of every paradigm of minimal pairs, given as [good ids, bad ids]."""
    records = [{"group": uid} for uid, some in pairs.items() for _ in some]
    scores = log_probabilities(model, [[(good, 0), (bad, 0)] for some in pairs.values() for good, bad in some], eot)
    groups = tasks.accuracy("toy", [r | {"scores": s} for r, s in zip(records, scores, strict=True)])[0].groups
    return {uid: groups[uid] for uid in pairs}


@dataclass
class Scores:
    """What a run is judged by while it trains."""

    val_loss: float | None  # nats per token; None without validation text
    pairs: dict | None  # of score_pairs; None without minimal pairs

    @property
    def toy(self) -> float | None:
        """Mean accuracy over the paradigms, percent."""
        return fmean(pair["accuracy"] for pair in self.pairs.values()) if self.pairs else None

    def __str__(self) -> str:
        shown = "no validation text" if self.val_loss is None else f"validation loss {self.val_loss:.3f}"
        return shown + (f", minimal pairs {self.toy:.1f} %" if self.pairs else "")


def assess(model: Transformer, x: np.ndarray, y: np.ndarray, batch_size: int, pairs: dict | None, eot: int) -> Scores:
    """Validation loss on blocks x, y (N, T) and the scores of tokenised minimal pairs."""
    model.eval()
    scores = Scores(mean_loss(model, x, y, batch_size), score_pairs(model, pairs, eot) if pairs else None)
    model.train()
    return scores


# --- A run ------------------------------------------------------------------------------------------------------------


def load_run(folder: Path, device: torch.device, weights: str = "last"):
    """The model, the tokenizer and the config of a run folder. Raises DataError or CheckpointError, one line each."""
    config = checkpoint.read_config(folder)
    file = folder / (checkpoint.AVERAGE if weights == "average" else checkpoint.NAME)
    state = checkpoint.load(file)
    model = Transformer(Config(**config["model"]))
    checkpoint.fill(model, state["model"], file)
    config["update"] = state.get("update")  # None: a mean over several
    return model.to(device).eval(), data.load_tokenizer(folder / "tokenizer.json"), config


def digest_of(model: Transformer) -> str:
    """What tells a model's weights from others."""
    digest = hashlib.blake2b(digest_size=8)
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy())
    return digest.hexdigest()


def score(model: Transformer, task: str, records: list[dict], items: list, batch_size: int) -> list[Row]:
    """A task's rows for a model; its log-probabilities are left in the records, under "scores", as means over tokens if
    these are counted in the records. Raises DataError if no score comes of them."""
    with short_of_memory("try a smaller --batch-size"):
        scores = log_probabilities(model, items, model.config.vocab_size - 1, batch_size, progress=f"{task:16}")
    for record, some in zip(records, scores, strict=True):
        record["scores"] = [total / n for total, n in zip(some, record.get("tokens", [1] * len(some)), strict=True)]
    if nan := sum(-math.inf in record["scores"] for record in records):
        print(f"{task}: a log-probability in {nan:,} of {len(items):,} items is not a number (NaN)", file=sys.stderr)
    rows = TASKS[task].rows(task, records)
    if nan == len(items) or not all(math.isfinite(row.score) for row in rows):
        raise data.DataError("no score: the model's log-probabilities are not numbers (NaN), or all the same")
    return rows


def untrained(n: int, cache: Path, name: str, model: Transformer, score_it: Callable) -> list[dict]:
    """The scores, by row, of models with the weights of seeds 0 .. n-1; each is worked out once and kept in `cache`."""
    try:
        known = json.loads(cache.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # a damaged one is made anew
        known = {}
    sizes = "-".join(str(size) for size in vars(model.config).values())
    names = [f"{name} {sizes} seed {seed}" for seed in range(n)]
    for seed, name in enumerate(names):
        if name not in known:
            torch.manual_seed(seed)
            fresh = Transformer(model.config).to(model.model.norm.weight.device).eval()
            known[name] = {row.name: row.score for row in score_it(fresh)}
            with contextlib.suppress(OSError):  # then they are worked out again the next time
                checkpoint.write(cache, json.dumps(known, indent=1).encode() + b"\n")
    return [known[name] for name in names]


def result_file(run: Path, task: str, args: argparse.Namespace) -> Path:
    """Where a run's scores of a task are; the decisions lie beside, as .jsonl."""
    marks = [mark for mark, usual in ((args.weights, "last"), (args.rules, "2026")) if mark != usual]
    return run / f"{'-'.join(['eval', task, *marks])}.json"


def other_rows(args: argparse.Namespace, task: str, files: str, weights: str) -> list[Row]:
    """The rows of another run, from its files. Raises DataError if they are of other items or of older weights."""
    file = result_file(args.compare, task, args)
    again = f"score it first: python evaluate.py {args.compare} --task {task}"
    try:
        result = json.loads(file.read_text())
        if (result["files"], result.get("digest")) != (files, weights):
            other = "weights" if result["files"] == files else "files"
            raise data.DataError(f"--compare={args.compare}: its score of {task} is of other {other}; {again}")
        lines = file.with_suffix(".jsonl").read_text().splitlines()
        return TASKS[task].rows(task, [json.loads(line) for line in lines])
    except FileNotFoundError as error:
        raise data.DataError(f"--compare={args.compare}: no {Path(error.filename).name} there; {again}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise data.DataError(f"--compare={args.compare}: its results of {task} are damaged; {again}") from None


# --- The table --------------------------------------------------------------------------------------------------------


def print_table(results: list[dict], rules: str, compared_to: Path | None) -> None:
    """The groups of a single row; all rows; the differences."""
    if len(results) == 1 and (groups := results[0]["groups"]):
        width = max(map(len, groups))
        print(f"\n{'':{width}} accuracy   items   ties")
        for group, result in groups.items():
            print(f"{group:{width}} {result['accuracy']:8.2f} {result['items']:7,} {result['ties']:6,}")
    n = max(len(result["untrained"]) for result in results)
    header = f"rules of {rules:15} {'score':>6}   95 % interval   items   ties"
    print(f"\n{header}" + (f"   {n} untrained" if n else ""))
    inside = False
    for result in results:
        line = f"{result['name']:24} {result['score']:6.2f}  "
        line += f"{'-':^13}" if result["low"] is None else f"{result['low']:6.2f}, {result['high']:5.2f}"
        line += f" {result['items']:8,} {result['ties']:6,}"
        if chance := result["untrained"]:
            mark = "*" if min(chance) <= result["score"] <= max(chance) else " "
            inside |= mark == "*"
            line += f" {mark} {fmean(chance):6.2f} ({min(chance):.2f} to {max(chance):.2f})"
        print(line)
    if inside:
        print("\n* within the range of the untrained models: no sign of anything learnt")
    if compared_to:
        print(f"\nagainst {compared_to}\n{'task':24} {'score':>6}   there   difference, 95 % interval   flipped")
        for result in results:
            c = result["compared"]
            flipped = "-" if c["flipped"] is None else f"{c['flipped']:,}"
            within = "-" if c["low"] is None else f"[{c['low']:+.2f}, {c['high']:+.2f}]"
            print(f"{result['name']:24} {result['score']:6.2f}  {c['score']:6.2f}   {c['difference']:+10.2f} "
                  f"{within} {flipped:>9}")  # fmt: skip


# --- The program ------------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> None:
    """Read all tasks, score each and write its results, print the table, and exit with a line if any failed."""
    reuse_memory()
    device = pick_device(args.device)
    model, tokenizer, config = load_run(args.run, device, args.weights)
    encode, own = tasks.Encoder(tokenizer), args.run / checkpoint.TOKENIZER
    corpus = Path(config["corpus"]["folder"]) / checkpoint.TOKENIZER  # beside it, other runs find the untrained scores
    same = corpus.exists() and corpus.read_bytes() == own.read_bytes()
    cache = (corpus if same else own).with_name("untrained.json")
    # Everything is read before anything is scored: what is wrong with a file or another run is said at once.
    wanted = tasks.there(args.task, args.data, args.rules)
    read = {task: tasks.read(task, args.data, encode, args.items, args.rules) for task in wanted}
    other = digest_of(load_run(args.compare, torch.device("cpu"), args.weights)[0]) if args.compare else ""
    others = {task: other_rows(args, task, read[task][2], other) for task in read if args.compare}
    of_run = {"run": str(args.run), "weights": args.weights, "update": config["update"], "digest": digest_of(model)}

    results, kept, wrong = [], [], []
    for task, (records, items, files) in read.items():
        score_it = functools.partial(score, task=task, records=records, items=items, batch_size=args.batch_size)
        try:
            chance = untrained(args.untrained, cache, f"{task} {args.rules} {files}", model, score_it)
            rows = score_it(model)
            theirs = others.get(task, [None] * len(rows))
            scores = [tasks.as_json(row, chance, other, args.rules) for row, other in zip(rows, theirs, strict=True)]
            results += scores
            file, lines = result_file(args.run, task, args), [json.dumps(record).encode() + b"\n" for record in records]
            checkpoint.write(file.with_suffix(".jsonl"), b"".join(lines))
            result = {"task": task, "rules": args.rules, **of_run, "files": files, "scores": scores}
            checkpoint.write(file, json.dumps(result, indent=1).encode() + b"\n")
            kept.append(file.name)
        except (ValueError, OSError) as error:  # the other tasks' scores are not lost
            wrong.append(f"{task}: {data.one_line(error)}")
    if results:
        print_table(results, args.rules, args.compare)
    if kept:
        print(f"\nin {args.run}: {', '.join(kept)}")
    if wrong:
        sys.exit(f"evaluate.py: {'; '.join(wrong)}")


def main(args: argparse.Namespace) -> None:
    try:
        with short_of_memory("try a smaller --batch-size"):
            evaluate(args)
    except ValueError as error:
        get_parser().error(str(error))


if __name__ == "__main__":
    main(ARGS)
