"""At what age is a word learnt, by a model and by children? python -m tools.aoa out/random-1 --data EVAL

Age of acquisition as the 2026 challenge scores it (after Chang and Bergen, 2022). A word's surprisal is its mean over
the word's contexts, at every update whose weights were kept (train.py --checkpoints=babylm). A sigmoid over log10 of
the words seen is fitted to it. The model's age is where that is half-way between a guess and the lowest surprisal. The
children's age is where half of them know the word. The score is Pearson's r of the two x 100, and 0 if p > 0.1.

EVAL, or its folder aoa, holds cdi_childes.json (words and contexts) and cdi_human.csv (the share of children that know
a word at 16 to 30 months). Into the run folder go eval-aoa.json, and eval-aoa.jsonl with every word's curve.
"""

import csv
import hashlib
import json
import math
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import checkpoint
import data
import evaluate
import flags
import tasks
from machine import pick_device

WORDS, CHILDREN = "cdi_childes.json", "cdi_human.csv"


def crossing(x: np.ndarray, y: np.ndarray, level: float, start: list, bounds: tuple, tries: int) -> float | None:
    """Where a sigmoid fitted to y (N,) at x (N,) reaches `level`; None if none fits or it does not."""
    from scipy.optimize import curve_fit

    def sigmoid(x, a, b, c, d):
        return a / (1 + np.exp(-b * (x - c))) + d

    try:
        with np.errstate(over="ignore"):
            a, b, c, d = curve_fit(sigmoid, x, y, p0=start, bounds=bounds, maxfev=tries)[0]
    except (RuntimeError, ValueError):  # no fit within the tries, or nothing that varies
        return None
    if min(a, b) <= 1e-6 or not d < level < a + d:
        return None
    return float(c - np.log(a / (level - d) - 1) / b)


def child_age(shares: dict[int, float]) -> float | None:
    """The age in months at which half of the children know a word, from their share at each age."""
    ages, known = np.array([*shares], float), np.array([*shares.values()])
    if len(ages) < 3:
        return None
    bounds = [0, 0, ages[0], -0.5], [2, 1, ages[-1], 0.5]
    age = crossing(ages, known, 0.5, [1, 0.1, ages.mean(), 0], bounds, 1000)
    return age if age is not None and ages[0] <= age <= ages[-1] else None


def model_age(seen: np.ndarray, surprisal: np.ndarray, guess: float) -> float | None:
    """log10 of the words seen (N,) where a word's surprisal (N,) in nats is half-way from `guess` to its lowest."""
    seen, surprisal = seen[there := np.isfinite(surprisal)], surprisal[there]
    if len(seen) < 3:
        return None
    x, y = np.log10(seen + 1), -surprisal
    spread, level = np.ptp(y), -(guess + surprisal.min()) / 2
    bounds = [0, 0, x.min() - 1, y.min() - 2 * spread - 1], [10 * spread + 1, 100, x.max() + 1, y.max() + 1]
    age = crossing(x, y, level, [spread, 1, x.mean(), y.min()], bounds, 20_000)
    return age if age is not None and x[0] <= age <= x[-1] else None


def correlation(records: list[dict]) -> tasks.Row:
    """The row of the table: Pearson's r x 100 over the words that have both ages."""
    from scipy.stats import pearsonr

    ages = np.array([(r["model"], r["child"]) for r in records if None not in (r["model"], r["child"])])

    def statistic(some: np.ndarray) -> float:
        if len(some) < 3 or not np.ptp(ages[some], axis=0).all():
            return 0.0
        r, p = pearsonr(*ages[some].T)
        return 100 * float(r) if p <= 0.1 else 0.0

    return tasks.Row("aoa", statistic, np.zeros(len(ages), int), np.array([]))


def read(folder: Path) -> tuple[dict[str, list[str]], dict[str, dict[int, float]], str]:
    """Word -> contexts, word -> age -> share of the children, and a digest. Raises DataError, naming the file."""
    places = [folder / name for name in ("aoa", "cdi_childes", "full_eval/aoa", "full_eval/cdi_childes")]
    folder = next((place for place in places if place.is_dir()), folder)
    for name in (WORDS, CHILDREN):
        if not (folder / name).is_file():
            raise data.DataError(f"{folder}: no {name} in it or in its folder aoa; {tasks.WHERE}")
    words, table = (folder / WORDS).read_bytes(), (folder / CHILDREN).read_bytes()
    try:
        name, children = WORDS, {}
        known = {word: some for word, some in json.loads(words).items() if len(word) > 1}
        contexts = {word: [tasks.field(one, "context") for one in some] for word, some in known.items()}
        name = CHILDREN
        for row in csv.DictReader(table.decode("utf-8-sig").splitlines()):
            children.setdefault(row["word"], {a: float(row[str(a)]) for a in range(16, 31) if row.get(str(a))})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise data.DataError(f"{folder / name}: not as the challenge has it ({data.one_line(error)})") from None
    return contexts, children, hashlib.blake2b(words + table, digest_size=8).hexdigest()


def words_seen(config: dict, update: int) -> float:
    """How many words a run has seen, repeats included; of weights kept by words, the number that names them."""
    args, per_token = Namespace(**config["flags"]), config["corpus"]["n_words"] / config["corpus"]["n_tokens"]
    if args.keep_weights in ("babylm", "words"):
        at = flags.milestones(args, per_token)
        return flags.MILLION * next(million for million in at if at[million] >= update)
    return update * args.batch_size * args.block_size * per_token


def curves(run: Path, config: dict, model, encode: tasks.Encoder, contexts: dict, batch_size: int) -> np.ndarray:
    """Mean surprisal in nats of every word at every update whose weights were kept: (words, updates)."""
    items = [[encode(c.strip() + " ", word.strip())] for word, some in contexts.items() for c in some]
    owner, columns = np.repeat(np.arange(len(contexts)), [len(some) for some in contexts.values()]), []
    for update, file in checkpoint.kept_weights(run):
        checkpoint.fill(model, checkpoint.load(file)["model"], file)
        name = f"{words_seen(config, update):,.0f} words"
        scores = evaluate.log_probabilities(model, items, model.config.vocab_size - 1, batch_size, progress=name)
        sums, counts = (np.bincount(owner, w, len(contexts)) for w in ([-some[0] for some in scores], None))
        columns.append(sums / np.where(counts, counts, np.nan))
    return np.array(columns).T


def score(run: Path, folder: Path, device: str, batch_size: int) -> dict:
    """Work out the score and write it, and the curves, into the run folder. Raises ValueError, one line."""
    if find_spec("scipy") is None:
        raise ValueError("needs scipy; pip install scipy")
    model, tokenizer, config = evaluate.load_run(run, pick_device(device))
    kept, digest = [update for update, _ in checkpoint.kept_weights(run)], evaluate.digest_of(model)
    if len(kept) < 3:
        raise ValueError(f"{run}: weights of {len(kept)} updates were kept, and a curve needs 3; train with "
                         "--checkpoints=babylm")  # fmt: skip
    contexts, children, files = read(folder)
    encode, seen = tasks.Encoder(tokenizer), np.array([words_seen(config, update) for update in kept])
    a_guess, records = math.log(model.config.vocab_size - 1), []  # end-of-text is a special token of the export's
    surprisal = curves(run, config, model, encode, contexts, batch_size)
    for word, curve in zip(contexts, surprisal, strict=True):
        pieces = max(1, len(encode.encode(f"The {word}")) - len(encode.encode("The")))
        ages = {"child": child_age(children.get(word, {})), "model": model_age(seen, curve, pieces * a_guess)}
        records.append({"word": word, **ages, "words": seen.tolist(), "surprisal": curve.tolist()})
    if not len((row := correlation(records)).strata):
        raise ValueError(f"{run}: no word of {folder} has an age of both the model and the children")
    result = {"task": "aoa", "rules": "2026", "run": str(run), "weights": "last", "update": config["update"]}
    result |= {"digest": digest, "files": files, "scores": [tasks.as_json(row, [], None)]}
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    checkpoint.write(run / "eval-aoa.jsonl", b"".join(lines))
    checkpoint.write(run / "eval-aoa.json", json.dumps(result, indent=1).encode() + b"\n")
    return result["scores"][0]


def main() -> None:
    parser = flags.new_parser("tools.aoa", __doc__)
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    parser.add_argument("--data", type=Path, required=True, help=f"{tasks.WHERE} (no default)")
    parser.add_argument("--batch-size", type=flags.number(int, 1), default=64, help="contexts scored together")
    parser.add_argument("--device", type=flags.device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    args = parser.parse_args()
    try:
        row = score(args.run, args.data, args.device, args.batch_size)
    except ValueError as error:
        parser.error(str(error))
    print(f"\naoa {row['score']:.2f} over {row['items']} words with both ages\nin {args.run}: eval-aoa.json, .jsonl")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"tools.aoa: {error}")
