"""The official rule, plainly: transformers' model and tokenizer from an export, one sentence at a time.

    python -m tests.official out/bcp-p1-1 EVAL --task blimp entity_tracking --items=2000

prints, for every task, how far evaluate.py agrees with it and how much faster it is. Nothing that evaluate.py
and tasks.py compute is used here.
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
from scipy.stats import spearmanr

import evaluate
import tasks
from machine import pick_device
from tools import export

EYE, SELF_PACED = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound"), "self_paced_reading_time"


@torch.no_grad()
def completion_log_probability(model, tokenizer, sentence: str, completion: str) -> float:
    """The sum over the tokens that end behind the completion's first character."""
    encoded = tokenizer(sentence, return_offsets_mapping=True)
    ids, begin = encoded["input_ids"], len(sentence) - len(completion)
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ends = [end for _, end in encoded["offset_mapping"]]
    return sum(log_p[i - 1, ids[i]].item() for i in range(1, len(ids)) if ends[i] > begin)


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


def sentences(task: str, file: str, item: dict) -> tuple[str, list[tuple[str, str]]]:
    """The group that an item counts in, and its (whole sentence, completion) candidates, the right one first."""
    if task == "ewok":
        pairs = [(item["Context1"] + " " + item[t], " " + item[t]) for t in ("Target1", "Target2")]
        return item["Domain"], pairs
    if task == "entity_tracking":
        return f"{file}_{item['numops']}_ops", [(item["input_prefix"] + option, option) for option in item["options"]]
    if task == "comps":
        phrase = item["property_phrase"]
        return file, [(f"{item[p]} {phrase}", phrase) for p in ("prefix_acceptable", "prefix_unacceptable")]
    if task.startswith("wug"):
        return "", [(s, s) for s in item["sentences"].split("\t")]
    return item.get("UID", file), [(item[s], item[s]) for s in ("sentence_good", "sentence_bad")]


def score_pairs(model, tokenizer, task: str, files: list[Path]) -> tuple[dict[str, float], list[int]]:
    """The score as the official pipeline has it, and the chosen candidate of every item."""
    right, chosen, ratios, firsts = defaultdict(list), [], [], []
    for file in files:
        for line in file.read_text().splitlines():
            item = json.loads(line)
            group, candidates = sentences(task, file.stem, item)
            scores = [completion_log_probability(model, tokenizer, *candidate) for candidate in candidates]
            chosen.append(int(np.argmax(scores)))
            right[group].append(chosen[-1] == 0)
            if task.startswith("wug"):
                ratios.append(item["ratio"])
                firsts.append(torch.tensor(scores).softmax(0)[0].item())
    if task.startswith("wug"):
        return {task: 100 * spearmanr(firsts, ratios)[0]}, chosen
    return {task: 100 * fmean(fmean(some) for some in right.values())}, chosen


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


def cut(folder: Path, source: Path, pattern: str, items: int) -> None:
    """Copy files, with about so many items of them in all, evenly taken."""
    folder.mkdir(parents=True)
    files = sorted(source.glob(pattern))
    total = sum(len(file.read_bytes().splitlines()) for file in files)
    step = max(1, total // items) if pattern == "*.jsonl" else 1
    for file in files:
        (folder / file.name).write_bytes(b"\n".join(file.read_bytes().splitlines()[::step]) + b"\n")


def check(run: Path, eval_data: Path, task: str, model, tokenizer, items: int) -> dict:
    """Both ways over the same items of a task: agreement in percent, largest difference of a score, seconds of each."""
    source = tasks.find_folder(task, eval_data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / task
        cut(target, source, "*.csv" if task == "reading" else "*.jsonl", items)
        began = time.perf_counter()
        ours, encoding, config = evaluate.load_run(run, pick_device("cpu"))
        records, candidates, _ = tasks.read(task, target, tasks.Encoder(encoding))
        rows = evaluate.score(ours, task, records, candidates, encoding.eot_token, 64)
        mine = {row.name: row.score for row in rows}
        middle = time.perf_counter()
        if task == "reading":
            theirs, surprisals = score_reading(model, tokenizer, target / "reading_data.csv")
            own = [-sum(record["scores"][: record["pieces"]]) for record in records]
            same = np.abs(np.array(own) - surprisals) < 1e-3
        else:
            theirs, chosen = score_pairs(model, tokenizer, task, sorted(target.glob("*.jsonl")))
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
    parser.add_argument("--items", type=int, default=10**9, help="of a task, evenly taken (default: all)")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_export(args.run, Path(folder) / "model")
        print("task                items  agreement   score  official   evaluate.py  one by one   ratio")
        for task in args.task:
            if tasks.find_folder(task, args.data) is None:
                print(f"{task:17} not in {args.data}")
                continue
            r = check(args.run, args.data, task, model, tokenizer, args.items)
            for name in r["scores"]:
                print(f"{name:17} {r['items']:7,} {r['agreement']:8.2f} %  {r['scores'][name]:6.2f}    "
                      f"{r['official'][name]:6.2f}    {r['seconds']:8.1f} s  {r['official_seconds']:8.1f} s "
                      f" {r['official_seconds'] / r['seconds']:6.1f}", flush=True)  # fmt: skip
            failed |= r["agreement"] < 99.9 or r["difference"] > 0.1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
