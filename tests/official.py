"""The official rules of 2026 and 2025, plainly: transformers' model and tokenizer, one sentence at a time.

    python -m tests.official out/bcp-p1-1 EVAL --task blimp entity_tracking --items=2000

prints, for every task, how far evaluate.py agrees with it and how much faster it is. Nothing that evaluate.py, tasks.py
and tools/aoa.py compute is used here.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing may ask for a network

import numpy as np
import torch
import transformers
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr

import evaluate
import tasks
from machine import pick_device
from tools import export

EYE, SELF_PACED = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound"), "self_paced_reading_time"


@torch.no_grad()
def completion_log_probability(model, tokenizer, sentence: str, completion: str, normalized: bool = False) -> float:
    """The sum, or the mean, over the tokens that end behind the completion's first character."""
    encoded = tokenizer(sentence, return_offsets_mapping=True)
    ids, begin = encoded["input_ids"], len(sentence) - len(completion)
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ends = [end for _, end in encoded["offset_mapping"]]
    terms = [log_p[i - 1, ids[i]].item() for i in range(1, len(ids)) if ends[i] > begin]
    return sum(terms) / (max(1, len(terms)) if normalized else 1)


@torch.no_grad()
def word_surprisal(model, tokenizer, context: str, word: str) -> float:
    """Token by token; what comes before is decoded and encoded again each time."""
    total = 0.0
    for token in tokenizer(word, add_special_tokens=False)["input_ids"]:
        piece = tokenizer.decode([token])
        log_p = model(torch.tensor([tokenizer(context)["input_ids"]])).logits[0, -1].log_softmax(-1)
        total -= log_p[tokenizer(piece, add_special_tokens=False)["input_ids"][0]].item()
        context += piece
    return total


def sentences(task: str, file: str, item: dict, rules: str) -> tuple[str, list[tuple[str, str]], int] | None:
    """The group that an item counts in, its (whole sentence, completion) candidates, which is right. None: left out."""
    if task == "ewok" and rules == "2026":
        return item["Domain"], [(item[c] + " " + item["Target1"], " " + item["Target1"])
                                for c in ("Context1", "Context2")], 0  # fmt: skip
    if task == "ewok":
        pairs = [(item["Context1"] + " " + item[t], " " + item[t]) for t in ("Target1", "Target2")]
        return item["Domain"], pairs, 0
    if task == "entity_tracking":
        if rules == "2026" and any("nothing" in option for option in item["options"]):
            return None
        pairs = [(item["input_prefix"] + option, option) for option in item["options"]]
        return f"{file}_{item['numops']}_ops", pairs, 0
    if task.startswith("global_piqa"):
        solutions = [item[f"solution{i}"] for i in range(4 if task.endswith("_parallel") else 2)]
        return item["example_id"], [(f"{item['prompt']} {s}", " " + s) for s in solutions], item["label"]
    if task == "comps":
        phrase = item["property_phrase"]
        return file, [(f"{item[p]} {phrase}", phrase) for p in ("prefix_acceptable", "prefix_unacceptable")], 0
    if task.startswith("wug"):
        return "", [(s, s) for s in item["sentences"].split("\t")], 0
    return item.get("UID", file), [(item[s], item[s]) for s in ("sentence_good", "sentence_bad")], 0


def credit(scores: list[float], label: int, rules: str) -> float:
    """Of 2026 the expectation: one of those that tie for the largest is drawn, and NaN is below all. Of 2025 the first
    of them is taken."""
    scores = np.array(scores, dtype=float)
    if rules == "2025":
        return float(scores.argmax() == label)
    scores[np.isnan(scores)] = -np.inf
    tied = scores == scores.max()
    return float(tied[label] / tied.sum())


def average(task: str, groups: dict[str, float]) -> float:
    """The mean over the groups; entity tracking's are averaged within each of its three files first."""
    if task != "entity_tracking":
        return fmean(groups.values())
    splits = [[groups[name] for name in groups if name.startswith(split)]
              for split in ("regular", "ambiref", "move_contents")]  # fmt: skip
    return fmean(fmean(split) for split in splits if split)


def score_pairs(model, tokenizer, task: str, files: list[Path], rules: str) -> tuple[dict[str, float], list[int]]:
    """The score as the official pipeline has it, and the chosen candidate of every item, the right one being 0."""
    right, chosen, ratios, firsts = defaultdict(list), [], [], []
    for file in files:
        for line in file.read_text().splitlines():
            item = json.loads(line)
            if (read := sentences(task, file.stem, item, rules)) is None:
                continue
            group, candidates, label = read
            normalized = task.startswith("global_piqa")
            scores = [completion_log_probability(model, tokenizer, *pair, normalized) for pair in candidates]
            order = [label, *(i for i in range(len(scores)) if i != label)]
            chosen.append(order.index(int(np.argmax(scores))))
            right[group].append(credit(scores, label, rules))
            if task.startswith("wug"):
                ratios.append(item["ratio"])
                firsts.append(torch.tensor(scores).softmax(0)[0].item())
    if task.startswith("wug"):
        return {task: 100 * spearmanr(firsts, ratios)[0]}, chosen
    return {task: 100 * average(task, {group: fmean(some) for group, some in right.items()})}, chosen


def added_variance(rows: list[dict], names: list[str], measure: str) -> float:
    """(R2 with surprisal - R2 without) / (1 - R2 without) x 100, with the products of two of the other predictors."""
    rows = [row for row in rows if all(np.isfinite(row[name]) for name in (*names, measure))]
    y = np.array([row[measure] for row in rows])
    x = [np.array([row[name] for row in rows]) for name in names]
    X = [np.ones(len(y)), *x, *(x[i] * x[j] for i in range(len(x)) for j in range(i))]

    def r_squared(columns: list[np.ndarray]) -> float:
        A = np.array([column / np.abs(column).max() for column in columns]).T
        residual = y - A @ np.linalg.lstsq(A, y, rcond=None)[0]
        return 1 - residual @ residual / ((y - y.mean()) @ (y - y.mean()))

    without, with_it = r_squared(X), r_squared([*X, np.array([row["surprisal"] for row in rows])])
    return 100 * (with_it - without) / (1 - without)


def score_reading(model, tokenizer, file: Path) -> tuple[dict[str, float], list[float]]:
    rows = []
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            numbers = ("Subtlex_log10", "length", "context_length", "prev_length", *EYE, SELF_PACED)
            rows.append({name: float(row[name] or "nan") for name in numbers})
            rows[-1]["surprisal"] = word_surprisal(model, tokenizer, row["item"] or "None", row["word"])
            missing = row["prev_item"] in ("", "None")  # both are read as missing by the official pipeline
            rows[-1]["previous"] = (
                float("nan") if missing else word_surprisal(model, tokenizer, row["prev_item"], row["prev_word"])
            )
    controls = ["Subtlex_log10", "length", "context_length"]
    eye = fmean(added_variance(rows, controls, measure) for measure in EYE)
    paced = added_variance(rows, [*controls, "prev_length", "previous"], SELF_PACED)
    return {"reading_eye_tracking": eye, "reading_self_paced": paced}, [row["surprisal"] for row in rows]


# --- Age of acquisition (2026) ----------------------------------------------------------------------------------------


def logistic(x, a, b, c, d):
    return a / (1 + np.exp(-b * (x - c))) + d


def child_aoa(ages: list[int], shares: list[float]) -> float | None:
    """Months at which the fitted share of the children that know a word is one half."""
    if len(ages) < 3:
        return None
    lower, upper = [0, 0, ages[0], -0.5], [2.0, 1.0, ages[-1], 0.5]
    try:
        (a, b, c, d), _ = curve_fit(logistic, np.array(ages), np.array(shares),
                                    p0=[1.0, 0.1, np.mean(ages), 0.0], bounds=(lower, upper), maxfev=1000)  # fmt: skip
    except RuntimeError:
        return None
    if a <= 0 or b <= 0 or 0.5 <= d or 0.5 >= a + d:
        return None
    aoa = c - np.log(a / (0.5 - d) - 1) / b
    return aoa if ages[0] <= aoa <= ages[-1] else None


def model_aoa(surprisals: list[float], words: list[float], n_tokens: int, vocabulary: int) -> float | None:
    """log10 of the words seen at which the fitted surprisal is half-way from that of a guess to the lowest."""
    chance, y, x = n_tokens * np.log(vocabulary), -np.array(surprisals), np.log10(np.array(words) + 1)
    threshold, spread = chance - 0.5 * (chance - min(surprisals)), y.max() - y.min()
    lower = [0.0, 0.0, x.min() - 1, y.min() - 2 * spread - 1]
    upper = [10 * spread + 1, 100.0, x.max() + 1, y.max() + 1]
    try:
        (a, b, c, d), _ = curve_fit(logistic, x, y, p0=[spread, 1.0, x.mean(), y.min()],
                                    bounds=(lower, upper), maxfev=20000)  # fmt: skip
    except RuntimeError:
        return None
    if b <= 1e-6 or a <= 1e-6 or -threshold <= d or -threshold >= a + d:
        return None
    log_step = c - np.log(a / (-threshold - d) - 1) / b
    return log_step if words[0] <= 10**log_step - 1 <= words[-1] else None


def score_aoa(models: dict[float, object], tokenizer, folder: Path) -> tuple[float, dict[str, tuple]]:
    """100 r of the models (words seen -> model) with children; and word -> both ages, surprisals at every step."""
    contexts = json.loads((folder / "cdi_childes.json").read_text())
    with open(folder / "cdi_human.csv", newline="", encoding="utf-8") as lines:
        children = {row["word"]: row for row in csv.DictReader(lines)}
    told, length = {}, len(tokenizer("The", add_special_tokens=False)["input_ids"])
    for word, some in contexts.items():
        if len(word) < 2:
            continue
        curve = [fmean(-completion_log_probability(model, tokenizer, one["context"].strip() + " " + word, word)
                       for one in some) for model in models.values()]  # fmt: skip
        n_tokens = max(1, len(tokenizer("The " + word, add_special_tokens=False)["input_ids"]) - length)
        known = {age: float(children[word][str(age)]) for age in range(16, 31) if children.get(word, {}).get(str(age))}
        child = child_aoa([*known], [*known.values()])
        told[word] = child, model_aoa(curve, [*models], n_tokens, tokenizer.vocab_size), curve
    both = [(child, model) for child, model, _ in told.values() if child is not None and model is not None]
    r, p = pearsonr(*zip(*both, strict=True)) if len(both) >= 3 else (0.0, 1.0)
    return (0.0 if p > 0.1 else 100 * r), told


# --- Both ways --------------------------------------------------------------------------------------------------------


def cut(folder: Path, source: Path, pattern: str, items: int) -> None:
    """Copy files, with about so many items of them in all, evenly taken."""
    folder.mkdir(parents=True)
    files = sorted(source.glob(pattern))
    total = sum(len(file.read_bytes().splitlines()) for file in files)
    step = max(1, total // items) if pattern == "*.jsonl" else 1
    for file in files:
        (folder / file.name).write_bytes(b"\n".join(file.read_bytes().splitlines()[::step]) + b"\n")


def check(run: Path, eval_data: Path, task: str, model, tokenizer, items: int, rules: str = "2026") -> dict:
    """Both ways over the same items of a task: agreement in percent, largest difference of a score, seconds of each."""
    source = tasks.find_folder(task, eval_data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / task
        cut(target, source, "*.csv" if task == "reading" else "*.jsonl", items)
        began = time.perf_counter()
        ours, encoding, config = evaluate.load_run(run, pick_device("cpu"))
        records, candidates, _ = tasks.read(task, target, tasks.Encoder(encoding), rules=rules)
        rows = evaluate.score(ours, task, records, candidates, 64)
        mine = {row.name: row.score for row in rows}
        middle = time.perf_counter()
        if task == "reading":
            theirs, surprisals = score_reading(model, tokenizer, target / "reading_data.csv")
            own = [-sum(record["scores"][: record["pieces"]]) for record in records]
            same = np.abs(np.array(own) - surprisals) < 1e-3
        else:
            theirs, chosen = score_pairs(model, tokenizer, task, sorted(target.glob("*.jsonl")), rules)
            same = rows[0].decisions == np.array(chosen)
        ended = time.perf_counter()
    return {
        "items": len(records), "agreement": 100 * same.mean(), "scores": mine, "official": theirs,
        "difference": max(abs(mine[name] - theirs[name]) for name in theirs),
        "seconds": middle - began, "official_seconds": ended - middle,
    }  # fmt: skip


def load_export(run: Path, folder: Path):
    """transformers' model and tokenizer of a run."""
    export.main(export.get_parser().parse_args([str(run), str(folder)]))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def main() -> None:
    known = [task for task in tasks.TASKS if task != "toy"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("data", type=Path, help="folder with a folder per task")
    parser.add_argument("--task", nargs="+", choices=known, default=known, metavar="TASK", help="(default: all)")
    parser.add_argument("--rules", choices=("2026", "2025"), default="2026", help="(default: 2026)")
    parser.add_argument("--items", type=int, default=10**9, help="of a task, evenly taken (default: all)")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_export(args.run, Path(folder) / "model")
        print(f"rules of {args.rules:15}   items  agreement   score  official   evaluate.py  one by one   ratio")
        for task in args.task:
            if args.rules not in tasks.TASKS[task].rules:
                continue
            if tasks.find_folder(task, args.data) is None:
                print(f"{task:24} not in {args.data}")
                continue
            r = check(args.run, args.data, task, model, tokenizer, args.items, args.rules)
            for name in r["scores"]:
                print(f"{name:24} {r['items']:7,} {r['agreement']:8.2f} %  {r['scores'][name]:6.2f}    "
                      f"{r['official'][name]:6.2f}    {r['seconds']:8.1f} s  {r['official_seconds']:8.1f} s "
                      f" {r['official_seconds'] / r['seconds']:6.1f}", flush=True)  # fmt: skip
            failed |= r["agreement"] < 99.9 or r["difference"] > 0.1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
