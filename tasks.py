"""BabyLM's tasks: what their files hold, and what score comes of the log-probabilities.

A task is an entry in TASKS: a reader, which makes candidates of a line of a file; a scorer, which makes rows of the
table of the candidates' log-probabilities; and where the files are. A new task is a reader and an entry. The rules are
those of the official pipelines (babylm-org/babylm-eval for 2026, babylm/evaluation-pipeline-2025), but a tie counts its
share, where 2026 draws lots among the tied and 2025 takes the first candidate. Nothing here knows of models.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data
import toy

# --- Candidates -------------------------------------------------------------------------------------------------------

# The token ids of prefix + completion, and the place of the first one that counts.
Candidate = tuple[list[int], int]


class Encoder:
    """Texts to candidates, by a run's tokenizer."""

    def __init__(self, tokenizer: "tiktoken.Encoding | data.Unigram"):  # noqa: F821
        self.tokenizer, self.encode = tokenizer, tokenizer.encode_ordinary
        self.normalize = getattr(tokenizer, "normalize", str)  # tiktoken takes a text as it is
        self.n_bytes = np.array([len(tokenizer.decode_single_token_bytes(i)) for i in range(tokenizer.n_vocab)])

    def __call__(self, prefix: str, completion: str) -> Candidate:
        """A completion after a prefix. A token counts when it overlaps the completion's characters."""
        ids = self.encode(prefix + completion)
        ends = np.cumsum(self.n_bytes[ids])
        # The end of the prefix can change with what follows it: a letter and an accent become one character.
        before = os.path.commonprefix([self.normalize(prefix), self.normalize(prefix + completion)])
        return ids, int(np.searchsorted(ends, len(before.encode()), side="right")) if prefix else 0

    def word(self, context: str, word: str) -> list[Candidate]:
        """A word after a context as the official reading task takes it: without a space between, and token by token,
        each after the text up to there, decoded and encoded again."""
        pieces = []
        for token in self.encode(word):
            ids, piece = self.encode(context), self.tokenizer.decode([token])
            pieces.append(([*ids, self.encode(piece)[0]], len(ids)))
            context += piece
        return pieces


# --- Readers: from a line of a file to candidates ---------------------------------------------------------------------


# A reader takes a line of a file, that file's name and an Encoder. It returns the group that the line's accuracy is
# counted in, or the human ratio that it is compared to, and the candidates, the right one first; or None, if the rules
# leave the line out.


def field(record: dict, name: str, kind: type = str):
    """A field of a record; ValueError if it is missing or something else."""
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"no {name!r} there, or not a {getattr(kind, '__name__', 'number')}")
    return record[name]


def minimal_pair(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """BLiMP and its supplement: the whole sentences."""
    candidates = [encode("", field(record, name)) for name in ("sentence_good", "sentence_bad")]
    return {"group": field({"UID": file} | record, "UID")}, candidates


def ewok(record: dict, file: str, encode: Encoder, other=("Context2", "Target1")) -> tuple[dict, list[Candidate]]:
    """The first target after the first context, against it after the second, or (2025) against the second target."""
    pairs = [(field(record, context), field(record, target)) for context, target in (("Context1", "Target1"), other)]
    return {"group": field(record, "Domain")}, [encode(context, " " + target) for context, target in pairs]


def entity_tracking(record: dict, file: str, encode: Encoder, nothing=False) -> tuple[dict, list[Candidate]] | None:
    """Options after a story; groups are of a file and a number of operations. Where one of the options is "nothing", it
    is the right one, and the shortest: only 2025 has these items."""
    prefix, options = field(record, "input_prefix"), field(record, "options", list)
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError("'options' must be two or more strings")
    group = {"group": f"{file}_{field(record, 'numops', int)}_ops", "file": file}
    left_out = not nothing and any("nothing" in option for option in options)
    return None if left_out else (group, [encode(prefix, option) for option in options])


def global_piqa(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """Solutions after a prompt, by the mean over their tokens."""
    solutions = [field(record, f"solution{i}") for i in range(4) if i < 2 or f"solution{i}" in record]
    if not 0 <= (label := field(record, "label", int)) < len(solutions):
        raise ValueError(f"'label' must be below {len(solutions)}, the number of solutions")
    candidates = [encode(field(record, "prompt"), " " + solution) for solution in solutions]
    candidates.insert(0, candidates.pop(label))
    return {"group": file, "tokens": [max(1, len(ids) - start) for ids, start in candidates]}, candidates


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
    if not 0 <= field(record, "ratio", int | float) <= 1:  # NaN is not, either
        raise ValueError("'ratio' must be from 0 to 1")
    return {"ratio": float(record["ratio"])}, [encode("", sentence) for sentence in sentences]


# Columns of the reading task's file.
CONTROLS = ("Subtlex_log10", "length", "context_length")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"


def reading(record: dict, file: str, encode: Encoder) -> tuple[dict, list[Candidate]]:
    """The pieces of the word and of the one before it. The pipeline takes the word None for a missing context."""
    if None in record.values():
        raise ValueError("fewer fields than in the header")
    word = encode.word(record["item"] or "None", record["word"])
    known = record["prev_item"] not in ("", "None")
    previous = encode.word(record["prev_item"], record["prev_word"]) if known else []
    numbers = {name: float(record[name] or "nan") for name in (*CONTROLS, "prev_length", *EYE_TRACKING, SELF_PACED)}
    return {"pieces": len(word), **numbers}, word + previous


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
    for the largest, the first counts 1/m. Groups of several files: the mean over a file's groups, then over files."""
    credits = np.array([(s[0] == max(s)) / s.count(max(s)) for s in (record["scores"] for record in records)])
    tied = np.array([0 < credit < 1 for credit in credits])
    names, first, group = np.unique([record["group"] for record in records], return_index=True, return_inverse=True)
    sizes, files = np.bincount(group), np.array([records[i].get("file", "") for i in first])
    of_file = [files == file for file in np.unique(files)]

    def statistic(some: np.ndarray) -> float:
        means = np.bincount(group[some], credits[some]) / sizes
        return 100 * float(np.mean([np.mean(means[own]) for own in of_file]))

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
        whole = np.isfinite(np.column_stack([*controls, surprisal, y])).all(axis=1)  # others do not count
        controls, s, y = [control[whole] for control in controls], surprisal[whole], y[whole]
        predictors = 2 + len(controls) * (len(controls) + 1) // 2  # with their products, surprisal and the constant
        if len(y) < 2 * predictors:
            raise data.DataError(f"{len(y)} words with all numbers are too few for {predictors} predictors")

        def statistic(some: np.ndarray) -> float:
            return explained([control[some] for control in controls], s[some], y[some])

        return Row(name, statistic, np.zeros(len(y), int), np.array([]))

    return [
        row("reading_eye_tracking", eye, EYE_TRACKING),
        row("reading_self_paced", [*eye, columns["prev_length"], previous], (SELF_PACED,)),
    ]


# --- The tasks --------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A reader, a scorer, where the files are, the package that the scorer needs, and whose rules have the task."""

    read: Callable  # a line of a file -> what is known of the item, and its candidates, by the rules of 2026
    rows: Callable  # records with their scores -> rows of the table
    folders: tuple[str, ...] = ()  # in --data, with _filtered or _fast behind, too; none: built in
    files: str = "*.jsonl"  # JSON lines, or CSV with a header
    needs: str = ""
    rules: tuple[str, ...] = ("2025", "2026")
    older: dict | None = None  # what the reader is told, besides, by the rules of 2025


TASKS = {
    "toy": Task(minimal_pair, accuracy),
    "blimp": Task(minimal_pair, accuracy, ("blimp",)),
    "blimp_supplement": Task(minimal_pair, accuracy, ("blimp_supplement", "supplement")),
    "ewok": Task(ewok, accuracy, ("ewok",), older={"other": ("Context1", "Target2")}),
    "entity_tracking": Task(entity_tracking, accuracy, ("entity_tracking",), older={"nothing": True}),
    "comps": Task(comps, accuracy, ("comps",)),
    "global_piqa_parallel": Task(global_piqa, accuracy, ("global_piqa_parallel",), rules=("2026",)),
    "global_piqa_nonparallel": Task(global_piqa, accuracy, ("global_piqa_nonparallel",), rules=("2026",)),
    "wug_adj": Task(wug, correlation, ("wug_adj_nominalization",), needs="scipy", rules=("2025",)),
    "wug_past": Task(wug, correlation, ("wug_past_tense",), needs="scipy", rules=("2025",)),
    "reading": Task(reading, reading_times, ("reading",), files="reading_data.csv"),
}
WHERE = ("the challenge has them at huggingface.co/datasets/BabyLM-community/BabyLM-2026-Strict-Evals and, for 2025, "
         "osf.io/ryjfm: give the folder evaluation_data/full_eval, with blimp_filtered/*.jsonl and so on")  # fmt: skip


# --- Files ------------------------------------------------------------------------------------------------------------


def find_folder(task: str, folder: Path) -> Path | None:
    """The folder of a task in --data, or in its folder full_eval; or None."""
    ends = "", "_filtered", "_fast"
    names = [f"{inside}{name}{end}" for inside in ("", "full_eval/") for name in TASKS[task].folders for end in ends]
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def there(wanted: list[str], folder: Path | None, rules: str) -> list[str]:
    """The tasks to score; of "all", those whose folder is there. Raises DataError if that is none."""
    wanted = list(dict.fromkeys(wanted))
    if "all" not in wanted:
        return wanted
    known = [task for task in TASKS if rules in TASKS[task].rules]
    missing = [task for task in known if task != "toy" and find_folder(task, folder) is None]
    if missing:
        print(f"not in {folder}: {', '.join(missing)}")
    wanted = [task for task in known if task in wanted or task not in ("toy", *missing)]
    if not wanted:
        raise data.DataError(f"--data={folder}: no folder of any task there; {WHERE}")
    return wanted


def task_files(task: str, folder: Path | None) -> dict[Path, bytes]:
    """A task's files and what is in them. Raises DataError if there are none."""
    if task == "toy":
        pairs = (pair | {"UID": uid} for uid, some in toy.minimal_pairs().items() for pair in some)
        return {Path("toy"): "\n".join(map(json.dumps, pairs)).encode()}
    pattern = TASKS[task].files
    files = sorted((find_folder(task, folder) or folder).glob(pattern))
    if not files:
        raise data.DataError(f"--data={folder}: no {pattern} in it or in its folder {TASKS[task].folders[0]}; {WHERE}")
    if others := [file for file in files if not file.is_file()]:  # a pipe, say, from which reading might never end
        raise data.DataError(f"{others[0]}: not a file")
    return {file: file.read_bytes() for file in files}


def read_file(task: str, file: Path, content: bytes, encode: Encoder, rules: str) -> Iterator[tuple[dict, list]]:
    """What the task's reader makes of each line. Raises DataError naming file and line."""
    is_csv, wanted = file.suffix == ".csv", f"wanted is a file of the task {task}"
    reader, told = TASKS[task].read, (rules == "2025" and TASKS[task].older) or {}
    line = first = 2 if is_csv else 1  # a CSV file has a header
    lines = io.BytesIO(content)  # ends lines at line feeds alone: a JSON string may hold other breaks
    try:
        for parsed in csv.DictReader(part.decode("utf-8-sig") for part in lines) if is_csv else map(json.loads, lines):
            if item := reader(parsed, file.stem, encode, **told):
                yield item
            line += 1
    except (json.JSONDecodeError, RecursionError):
        raise data.DataError(f"{file}, line {line}: not a whole JSON object, or one nested too deeply") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        what = f"no {error} there" if isinstance(error, KeyError) else error
        raise data.DataError(f"{file}, line {line}: {what}; {wanted}") from None
    if line == first:
        raise data.DataError(f"{file}: empty; {wanted}")


def read(
    task: str, folder: Path | None, encode: Encoder, most: int | None = None, rules: str = "2026"
) -> tuple[list[dict], list[list[Candidate]], str]:
    """Records and candidates of a task's items, about `most` of them evenly taken, and a digest of what was read.

    Raises DataError: for a wrong file, naming it and the line, or a missing package.
    """
    needs = TASKS[task].needs
    if needs and find_spec(needs) is None:
        raise data.DataError(f"--task: {task} needs {needs}; pip install {needs}")
    records, items, digest = [], [], hashlib.blake2b(digest_size=8)
    for file, content in task_files(task, folder).items():
        digest.update(content)
        for record, candidates in read_file(task, file, content, encode, rules):
            records.append(record)
            items.append(candidates)
    if not items:
        raise data.DataError(f"--data={folder}: the rules of {rules} leave no item of {task}")
    step = max(1, len(items) // (most or len(items)))
    return records[::step], items[::step], digest.hexdigest() + (f"/{step}" if step > 1 else "")


# --- The bootstrap ----------------------------------------------------------------------------------------------------


DRAWS = 1000  # of the bootstrap


def draws(strata: np.ndarray) -> Iterator[np.ndarray]:
    """The bootstrap: as many items as there are, drawn with replacement within each stratum, again and again."""
    rng = np.random.default_rng(0)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    first, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    for _ in range(DRAWS):
        yield order[first + (rng.random(len(order)) * size).astype(int)]


def interval(values: list[float], strata: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The middle 95 %. None where that says nothing: a group has one item, which no draw varies, or a draw no score."""
    if np.bincount(strata).min() < 2 or not np.isfinite(values).all():
        return None, None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def as_json(row: Row, chance: list[dict], other: Row | None, rules: str = "2026") -> dict:
    """A row with its interval, the scores of untrained models, and the difference from another run's row: paired, both
    on the same draws of the items."""
    low, high = interval([row.statistic(some) for some in draws(row.strata)], row.strata)
    result = {"name": row.name, "rules": rules, "score": row.score, "low": low, "high": high, "items": len(row.strata)}
    result |= {"ties": row.ties, "untrained": [scores[row.name] for scores in chance], "compared": None}
    if other:
        gaps = [row.statistic(some) - other.statistic(some) for some in draws(row.strata)]
        low, high = interval(gaps, row.strata)
        flipped = int((row.decisions != other.decisions).sum()) if len(row.decisions) else None
        difference = {"difference": row.score - other.score, "low": low, "high": high, "flipped": flipped}
        result["compared"] = {"score": other.score, **difference}
    return result | {"groups": row.groups}
