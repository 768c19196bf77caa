"""Score a trained run as the BabyLM 2025 challenge does: which of two sentences does the model find more probable?

    python evaluate.py out/bcp-p1-1                                      # the built-in corpus's minimal pairs
    python evaluate.py out/bcp-p1-1 --data EVAL --task blimp wug_adj     # of the folders EVAL/blimp and so on
    python evaluate.py out/bcp-p1-1 --data EVAL --task all --untrained=5 --compare out/random-1
    python evaluate.py --reference                                       # what the poster reports

A task is a reader, which makes candidates of a file's records, and a scorer, which makes a score of the candidates'
log-probabilities. A candidate's is the sum over the tokens of its completion, those that overlap its characters; the
end-of-text token stands before every text, so that the first word counts too. The rules are those of the official
pipeline (babylm/evaluation-pipeline-2025), but a tie counts one half, where the pipeline takes the first candidate.

Into the run folder go eval-TASK.json (the scores, by paradigm too) and eval-TASK.jsonl (all decisions, one a line).
"""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

import data

DRAWS = 1000  # of the bootstrap
REFERENCE = """What the poster reports (Yoshida et al. 2025), not measured here; "text avg." holds fine-tuned tasks too:

model                            BLiMP   BLiMP-S   WUG-ADJ   text avg.
GPT-BERT (official baseline)      80.5      73.0      41.2        70.9
GPT-2 (official baseline)         74.9      63.3      50.2        54.7
BCP p = 1                         49.2      50.4      57.5        32.8
BCP p = 2                         52.2      50.2      57.1        32.5"""

# --- Readers: from a task's files to candidates -----------------------------------------------------------------------

# The token ids of prefix + completion, and the place of the first one that counts.
Candidate = tuple[list[int], int]


class Encoder:
    """Texts to candidates, by a run's tokenizer."""

    def __init__(self, tokenizer: "tiktoken.Encoding"):  # noqa: F821
        self.tokenizer, self.encode = tokenizer, tokenizer.encode_ordinary
        self.n_bytes = np.array([len(tokenizer.decode_single_token_bytes(i)) for i in range(tokenizer.n_vocab)])

    def __call__(self, prefix: str, completion: str) -> Candidate:
        """A completion after a prefix. A token counts when it overlaps the completion's characters."""
        ids = self.encode(prefix + completion)
        ends = np.cumsum(self.n_bytes[ids])
        return ids, int(np.searchsorted(ends, len(prefix.encode()), side="right")) if prefix else 0

    def word(self, context: str, word: str) -> list[Candidate]:
        """A word after a context as the official reading task takes it: without a space between, and token by token,
        each after the text up to there, decoded and encoded again."""
        pieces = []
        for token in self.encode(word):
            ids, piece = self.encode(context), self.tokenizer.decode([token])
            pieces.append(([*ids, self.encode(piece)[0]], len(ids)))
            context += piece
        return pieces


def field(record: dict, name: str, kind: type = str):
    """A field of a record; ValueError if it is missing or something else."""
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"no {name!r} there, or not a {getattr(kind, '__name__', 'number')}")
    return record[name]


# A reader takes a line of a file, that file's name and an Encoder. It returns the group that the line's accuracy is
# counted in, or the human ratio that it is compared to, and the candidates, the right one first.


def minimal_pair(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """BLiMP and its supplement: the whole sentences."""
    candidates = [encode("", field(record, name)) for name in ("sentence_good", "sentence_bad")]
    return {"group": record.get("UID", file)}, candidates


def ewok(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """Two targets after the first context."""
    context = field(record, "Context1")
    candidates = [encode(context, " " + field(record, name)) for name in ("Target1", "Target2")]
    return {"group": field(record, "Domain")}, candidates


def entity_tracking(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """Options after a story; groups are of a file and a number of operations."""
    prefix, options = field(record, "input_prefix"), field(record, "options", list)
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError("'options' must be two or more strings")
    return {"group": f"{file}_{field(record, 'numops', int)}_ops"}, [encode(prefix, option) for option in options]


def comps(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """A property after two concepts."""
    phrase = field(record, "property_phrase")
    prefixes = [field(record, name) for name in ("prefix_acceptable", "prefix_unacceptable")]
    return {"group": file}, [encode(prefix + " ", phrase) for prefix in prefixes]


def wug(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """Sentences with derived forms of a made-up word, and how many people took the first."""
    sentences = field(record, "sentences").split("\t")
    if len(sentences) < 2:
        raise ValueError("'sentences' must be two or more, with a tab between")
    return {"ratio": float(field(record, "ratio", int | float))}, [encode("", sentence) for sentence in sentences]


def reading(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """The pieces of the word and of the one before it. The pipeline takes the word None for a missing context."""
    if None in record.values():
        raise ValueError("fewer fields than in the header")
    word = encode.word(record["item"] or "None", record["word"])
    known = record["prev_item"] not in ("", "None")
    previous = encode.word(record["prev_item"], record["prev_word"]) if known else []
    numbers = {name: float(record[name] or "nan") for name in (*CONTROLS, "prev_length", *EYE_TRACKING, SELF_PACED)}
    return {"pieces": len(word), **numbers}, word + previous


def read(
    task: str, folder: Path | None, encode: Encoder, most: int | None = None
) -> tuple[list[dict], list[list[Candidate]], str]:
    """Records and candidates of a task's items, about `most` of them evenly taken, and a digest of what was read.

    Raises DataError naming file and line.
    """
    records, items, digest = [], [], hashlib.blake2b(digest_size=8)
    for file, content in task_files(task, folder).items():
        digest.update(content)
        line = 1 if task == "reading" else 0  # a CSV file has a header
        try:
            is_csv, text = task == "reading", content.decode()
            for parsed in csv.DictReader(io.StringIO(text)) if is_csv else map(json.loads, text.splitlines()):
                record, candidates = TASKS[task].read(parsed, file.stem, encode)
                records.append(record)
                items.append(candidates)
                line += 1
        except json.JSONDecodeError:
            raise data.DataError(f"{file}, line {line + 1}: not a whole JSON object") from None
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            what = f"no {error} there" if isinstance(error, KeyError) else error
            raise data.DataError(f"{file}, line {line + 1}: {what}; wanted is a file of the task {task}") from None
        if line == is_csv:
            raise data.DataError(f"{file}: empty; wanted is a file of the task {task}")
    step = max(1, len(items) // (most or len(items)))
    return records[::step], items[::step], digest.hexdigest() + (f"/{step}" if step > 1 else "")


def task_files(task: str, folder: Path | None) -> dict[Path, bytes]:
    """A task's files and what is in them. Raises DataError if there are none."""
    if task == "toy":
        import toy

        pairs = (pair | {"UID": uid} for uid, some in toy.minimal_pairs().items() for pair in some)
        return {Path("toy"): "\n".join(map(json.dumps, pairs)).encode()}
    pattern = "reading_data.csv" if task == "reading" else "*.jsonl"
    files = sorted((find_folder(task, folder) or folder).glob(pattern))
    if not files:
        raise data.DataError(f"--data={folder}: no {pattern} in it or in its folder {TASKS[task].folders[0]}")
    return {file: file.read_bytes() for file in files}


def find_folder(task: str, folder: Path) -> Path | None:
    """The folder of a task in --data, or None."""
    return next((folder / name for name in TASKS[task].folders if (folder / name).is_dir()), None)


# --- Scorers: from log-probabilities to a score -----------------------------------------------------------------------


@dataclass
class Row:
    """One row of the table: a score that can be worked out on any draw of the items, for the bootstrap."""

    name: str
    statistic: Callable[[np.ndarray], float]  # items (indices) -> score
    strata: np.ndarray  # (N,) which items are drawn among each other
    decisions: np.ndarray  # (N,) which candidate was chosen; empty where nothing is
    ties: int = 0
    groups: dict | None = None  # score, items, ties of each paradigm, domain, ...

    @property
    def score(self) -> float:
        return self.statistic(np.arange(len(self.strata)))


def accuracy(task: str, records: list[dict]) -> list[Row]:
    """How often the first candidate has the largest sum, percent, as the mean over groups. Of m candidates that tie
    for the largest, the first counts 1/m."""
    credits = np.array([(s[0] == max(s)) / s.count(max(s)) for s in (record["scores"] for record in records)])
    tied = np.array([0 < credit < 1 for credit in credits])
    names, group = np.unique([record["group"] for record in records], return_inverse=True)
    sizes = np.bincount(group)

    def statistic(some: np.ndarray) -> float:
        return 100 * float(np.mean(np.bincount(group[some], credits[some]) / sizes))

    parts = [np.flatnonzero(group == i) for i in range(len(names))]
    groups = {
        str(name): {"accuracy": 100 * float(credits[part].mean()), "items": len(part), "ties": int(tied[part].sum())}
        for name, part in zip(names, parts, strict=True)
    }
    return [Row(task, statistic, group, decisions(records), int(tied.sum()), groups)]


def correlation(task: str, records: list[dict]) -> list[Row]:
    """Spearman's correlation x 100 of the human ratio with the softmax probability of the first candidate."""
    from scipy.stats import spearmanr

    scores = [np.array(record["scores"], dtype=np.float32) for record in records]  # as there: with ties near 1
    odds = [np.exp(s - s.max()) for s in scores]
    first = np.array([some[0] / some.sum() for some in odds])
    ratio = np.array([record["ratio"] for record in records])

    def statistic(some: np.ndarray) -> float:
        varied = np.ptp(first[some]) > 0 and np.ptp(ratio[some]) > 0
        return 100 * float(spearmanr(first[some], ratio[some])[0]) if varied else 0.0

    ties = sum(record["scores"].count(max(record["scores"])) > 1 for record in records)
    return [Row(task, statistic, np.zeros(len(records), int), decisions(records), ties)]


def decisions(records: list[dict]) -> np.ndarray:
    """Which candidate is the most probable, the first of several."""
    return np.array([int(np.argmax(record["scores"])) for record in records])


CONTROLS = ("Subtlex_log10", "length", "context_length")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"


def explained(controls: list[np.ndarray], surprisal: np.ndarray, measures: np.ndarray) -> float:
    """What surprisal adds to a regression of reading times on controls and their products of two, percent of the
    variance that these leave unexplained. Controls and surprisal (N,), measures (N, M), the mean over which is taken.
    """
    products = [a * b for i, a in enumerate(controls) for b in controls[:i]]
    left = []
    for columns in ([*controls, *products], [*controls, *products, surprisal]):
        X = np.column_stack(columns)
        X = np.column_stack([np.ones(len(X)), (X - X.mean(axis=0)) / X.std(axis=0)])  # the scale changes no fit
        left.append(((measures - X @ np.linalg.lstsq(X, measures, rcond=None)[0]) ** 2).sum(axis=0))
    return 100 * float(np.mean(1 - left[1] / left[0]))


def reading_times(task: str, records: list[dict]) -> list[Row]:
    """Two rows: eye tracking; and self-paced reading, with the word before among the controls."""
    columns = {name: np.array([record[name] for record in records]) for name in (*CONTROLS, "prev_length")}
    surprisal = -np.array([sum(record["scores"][: record["pieces"]]) for record in records])
    previous = [record["scores"][record["pieces"] :] for record in records]
    previous = np.array([-sum(scores) if scores else math.nan for scores in previous])
    eye = [columns[name] for name in CONTROLS]

    def row(name: str, controls: list[np.ndarray], measures: tuple[str, ...]) -> Row:
        y = np.array([[record[measure] for measure in measures] for record in records])
        whole = np.isfinite(np.column_stack([*controls, y])).all(axis=1)  # rows that lack a number do not count
        controls, s, y = [control[whole] for control in controls], surprisal[whole], y[whole]

        def statistic(some: np.ndarray) -> float:
            return explained([control[some] for control in controls], s[some], y[some])

        return Row(name, statistic, np.zeros(len(y), int), np.array([]))

    return [
        row("reading_eye_tracking", eye, EYE_TRACKING),
        row("reading_self_paced", [*eye, columns["prev_length"], previous], (SELF_PACED,)),
    ]


def draws(strata: np.ndarray) -> Iterator[np.ndarray]:
    """The bootstrap: as many items as there are, drawn with replacement within each stratum, again and again."""
    rng = np.random.default_rng(0)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    first, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    for _ in range(DRAWS):
        yield order[first + (rng.random(len(order)) * size).astype(int)]


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


class Task(NamedTuple):
    """A reader, a scorer, and where the files are."""

    read: Callable  # a line of a file -> what is known of the item, and its candidates
    rows: Callable  # records with their scores -> rows of the table
    folders: tuple[str, ...] = ()  # in --data


TASKS = {
    "toy": Task(minimal_pair, accuracy),
    "blimp": Task(minimal_pair, accuracy, ("blimp", "blimp_filtered")),
    "blimp_supplement": Task(minimal_pair, accuracy, ("blimp_supplement", "supplement_filtered")),
    "ewok": Task(ewok, accuracy, ("ewok", "ewok_filtered")),
    "entity_tracking": Task(entity_tracking, accuracy, ("entity_tracking",)),
    "comps": Task(comps, accuracy, ("comps",)),
    "wug_adj": Task(wug, correlation, ("wug_adj_nominalization",)),
    "wug_past": Task(wug, correlation, ("wug_past_tense",)),
    "reading": Task(reading, reading_times, ("reading",)),
}

# --- Command line -----------------------------------------------------------------------------------------------------


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
    add("--task", nargs="+", default=["toy"], metavar="TASK", help=f"some of {', '.join(TASKS)}; or all: those whose "
        "folder is in --data (default: toy)")
    add("--data", type=Path, help="a folder with a folder per task, as the challenge has it, or with one task's files "
        "(default: none; toy needs none)")
    add("--weights", choices=("last", "average"), default="last", help="average: of --average-last (default: last)")
    add("--untrained", type=int, default=0, metavar="N", help="beside every score that of N models of this size and "
        "tokenizer as they are before training; kept beside the corpus's tokenizer (default: 0)")
    add("--compare", type=Path, metavar="OTHER", help="differences from another run, scored on the same tasks before "
        "(default: none)")
    add("--items", type=int, metavar="N", help="about N of each task's items, evenly taken (default: all)")
    add("--batch-size", type=int, default=64, help="items scored together (default: 64)")
    add("--reference", action="store_true", help="print the poster's table (default: off)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    # fmt: on
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.run is None and not args.reference:
        parser.error("no run; give the folder of one, such as out/bcp-p1-1")
    for task in args.task:
        if task not in (*TASKS, "all"):
            parser.error(f"argument --task: {task!r}: must be some of {', '.join(TASKS)}, or all")
        if task != "toy" and args.data is None:
            parser.error(f"argument --task: {task} needs --data=FOLDER, where the evaluation files are")
    for flag, least in (("--untrained", 0), ("--batch-size", 1), ("--items", 1)):
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None and value < least:
            parser.error(f"argument {flag}: {value}: must be at least {least}")
    return args


ARGS = get_args() if __name__ == "__main__" else None  # wrong flags end here, before the slow import of torch

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import checkpoint  # noqa: E402
from machine import pick_device, reuse_memory  # noqa: E402
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
    """log P(completion | prefix) in nats of every candidate of every item; 0 for an empty one.

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
        np.subtract.at(totals, tuple(np.array(sums, int).reshape(-1, 2).T), losses.double().cpu().numpy())
        for row, i in enumerate(some):
            scores[i] = (totals[row, 0] + totals[row, 1 : 1 + len(items[i])]).tolist()
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
    groups = accuracy("toy", [{**record, "scores": s} for record, s in zip(records, scores, strict=True)])[0].groups
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


# --- Afterwards -------------------------------------------------------------------------------------------------------


def load_run(folder: Path, device: torch.device, weights: str = "last"):
    """The model, the tokenizer and the config of a run folder. Raises DataError or CheckpointError, one line each."""
    config = checkpoint.read_config(folder)
    file = folder / (checkpoint.AVERAGE if weights == "average" else checkpoint.NAME)
    state = checkpoint.load(file)
    model = Transformer(Config(**config["model"]))
    checkpoint.fill(model, state["model"], file)
    return model.to(device).eval(), data.load_tokenizer(folder / "tokenizer.json"), config


def score(model: Transformer, task: str, records: list[dict], items: list, eot: int, batch_size: int) -> list[Row]:
    """A task's rows for a model; its log-probabilities are left in the records, under "scores"."""
    scores = log_probabilities(model, items, eot, batch_size, progress=f"{task:16}")
    for record, some in zip(records, scores, strict=True):
        record["scores"] = some
    return TASKS[task].rows(task, records)


def untrained(n: int, cache: Path, task: str, digest: str, config: Config, score_it: Callable) -> list[dict]:
    """The scores, by row, of models with the weights of seeds 0 .. n-1; each is worked out once and kept in `cache`."""
    try:
        known = json.loads(cache.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # a damaged one is made anew
        known = {}
    sizes = "-".join(str(size) for size in vars(config).values())
    names = [f"{task} {digest} {sizes} seed {seed}" for seed in range(n)]
    for seed, name in enumerate(names):
        if name not in known:
            torch.manual_seed(seed)
            known[name] = {row.name: row.score for row in score_it(Transformer(config))}
            beside = cache.with_name(f"{cache.name}.{os.getpid()}.part")
            beside.write_text(json.dumps(known, indent=1) + "\n")
            os.replace(beside, cache)
    return [known[name] for name in names]


def cache_of(run: Path, config: dict) -> Path:
    """Where scores of untrained models are kept: beside the prepared corpus's tokenizer, if it is still there."""
    own, corpus = run / "tokenizer.json", Path(config["corpus"]["folder"]) / "tokenizer.json"
    same = corpus.exists() and corpus.read_bytes() == own.read_bytes()
    return (corpus if same else own).with_name("untrained.json")


def other_rows(run: Path, task: str, weights: str, digest: str) -> list[Row]:
    """The rows of another run, from its files. Raises DataError if it was not scored on the same items."""
    result, lines = (run / f"eval-{name(task, weights)}.{kind}" for kind in ("json", "jsonl"))
    again = f"score it first: python evaluate.py {run} --task {task}"
    try:
        if json.loads(result.read_text())["files"] != digest:
            raise data.DataError(f"--compare={run}: was scored on other files of {task}; {again}")
        return TASKS[task].rows(task, [json.loads(line) for line in lines.read_text().splitlines()])
    except FileNotFoundError as error:
        raise data.DataError(f"--compare={run}: no {Path(error.filename).name} there; {again}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise data.DataError(f"--compare={run}: its results of {task} are damaged; {again}") from None


def name(task: str, weights: str) -> str:
    return task if weights == "last" else f"{task}-{weights}"


def as_json(row: Row, chance: list[dict], other: Row | None) -> dict:
    """A row with its interval, the scores of untrained models, and the difference from another run's row: paired, both
    on the same draws of the items."""
    low, high = interval([row.statistic(some) for some in draws(row.strata)])
    result = {"name": row.name, "score": row.score, "low": low, "high": high, "items": len(row.strata)}
    result |= {"ties": row.ties, "untrained": [scores[row.name] for scores in chance], "compared": None}
    if other:
        low, high = interval([row.statistic(some) - other.statistic(some) for some in draws(row.strata)])
        flipped = int((row.decisions != other.decisions).sum()) if len(row.decisions) else None
        difference = {"difference": row.score - other.score, "low": low, "high": high, "flipped": flipped}
        result["compared"] = {"score": other.score, **difference}
    return result | {"groups": row.groups}


def print_table(results: list[dict], compared_to: Path | None) -> None:
    """All rows; then the mean over the zero-shot tasks among them."""
    n = max(len(result["untrained"]) for result in results)
    header = f"{'task':21} {'score':>6}   95 % interval   items   ties" + (f"   {n} untrained" if n else "")
    print(f"\n{header}")
    inside = False
    for result in results:
        line = f"{result['name']:21} {result['score']:6.2f}  {result['low']:6.2f}, {result['high']:5.2f}"
        line += f" {result['items']:8,} {result['ties']:6,}"
        if chance := result["untrained"]:
            mark = "*" if min(chance) <= result["score"] <= max(chance) else " "
            inside |= mark == "*"
            line += f" {mark} {fmean(chance):6.2f} ({min(chance):.2f} to {max(chance):.2f})"
        print(line)
    zero_shot = [result for result in results if result["name"] != "toy"]
    if len(zero_shot) > 1:
        print(f"\nmean over the zero-shot tasks {', '.join(r['name'] for r in zero_shot)}: "
              f"{fmean(r['score'] for r in zero_shot):.2f}")  # fmt: skip
    if inside:
        print("\n* within the range of the untrained models: no sign of anything learnt")
    if compared_to:
        print(f"\nagainst {compared_to}\n{'task':21} {'score':>6}   there   difference, 95 % interval   flipped")
        for result in results:
            c = result["compared"]
            flipped = "-" if c["flipped"] is None else f"{c['flipped']:,}"
            print(f"{result['name']:21} {result['score']:6.2f}  {c['score']:6.2f}   {c['difference']:+10.2f} "
                  f"[{c['low']:+.2f}, {c['high']:+.2f}] {flipped:>9}")  # fmt: skip


def print_groups(groups: dict) -> None:
    width = max(map(len, groups))
    print(f"\n{'':{width}} accuracy   items   ties")
    for group, result in groups.items():
        print(f"{group:{width}} {result['accuracy']:8.2f} {result['items']:7,} {result['ties']:6,}")


def chosen_tasks(args: argparse.Namespace) -> list[str]:
    """The tasks to score; of "all", those that are there."""
    tasks = list(dict.fromkeys(args.task))
    if "all" not in tasks:
        return tasks
    missing = [task for task in TASKS if task != "toy" and find_folder(task, args.data) is None]
    if missing:
        print(f"not in {args.data}: {', '.join(missing)}")
    tasks = [task for task in TASKS if task in tasks or task not in ("toy", *missing)]
    if not tasks:
        raise data.DataError(f"--data={args.data}: no folder of any task there; one is called, for instance, blimp")
    return tasks


def evaluate(args: argparse.Namespace) -> None:
    """Read all tasks, score them, write the results into the run folder and print the table."""
    reuse_memory()
    device = pick_device(args.device)
    model, tokenizer, config = load_run(args.run, device, args.weights)
    eot, encode = model.config.vocab_size - 1, Encoder(tokenizer)
    tasks = chosen_tasks(args)
    if any(TASKS[task].rows is correlation for task in tasks):
        try:
            import scipy.stats  # noqa: F401
        except ImportError:
            raise data.DataError("--task: wug_adj and wug_past need scipy; pip install scipy") from None
    # Everything is read before anything is scored: what is wrong with a file or another run is said at once.
    read_tasks = {task: read(task, args.data, encode, args.items) for task in tasks}
    others = {task: other_rows(args.compare, task, args.weights, read_tasks[task][2]) for task in tasks if args.compare}

    results = []
    for task, (records, items, digest) in read_tasks.items():

        def score_it(some_model, task=task, records=records, items=items):
            return score(some_model.to(device).eval(), task, records, items, eot, args.batch_size)

        cache = cache_of(args.run, config)
        chance = untrained(args.untrained, cache, task, digest, model.config, score_it)
        rows = score_it(model)
        some = [
            as_json(row, chance, other) for row, other in zip(rows, others.get(task, [None] * len(rows)), strict=True)
        ]
        file = args.run / f"eval-{name(task, args.weights)}.json"
        result = {"task": task, "run": str(args.run), "weights": args.weights, "files": digest, "scores": some}
        file.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        file.write_text(json.dumps(result, indent=1) + "\n")
        results += some
    if len(results) == 1 and results[0]["groups"]:
        print_groups(results[0]["groups"])
    print_table(results, args.compare)
    print(f"\nin {args.run}: " + ", ".join(f"eval-{name(task, args.weights)}.json" for task in tasks))


def main(args: argparse.Namespace) -> None:
    if args.run:
        try:
            evaluate(args)
        except ValueError as error:
            get_parser().error(str(error))
    if args.reference:
        print(("\n" if args.run else "") + REFERENCE)


if __name__ == "__main__":
    try:
        main(ARGS)
    except OSError as error:
        sys.exit(f"evaluate.py: {error}")
