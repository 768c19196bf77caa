"""What a run tells: metrics.jsonl, written here and read here for everybody, the progress bar, the report at the end.

A line of metrics.jsonl is a record, of one of three kinds:

    an update       update, epoch (from 1), batch (its place in the order of the text; null: blocks drawn from it),
                    repeat (from 1), loss (nats per token), alpha (before it is clamped at 0; null outside bcp), lr,
                    tokens (so far), done (why the batch was left after this update, or null), and every --norms-every
                    updates step_norm, pull_norm, anchor_dist, anchor_by_layer, unmoved
    an evaluation   update, val_loss (nats per token), toy (minimal pairs, %), pairs (by paradigm, %)
    forgetting      update, forgetting: a list of [batch, updates since it was trained on, its loss then, its loss now]

What follows from them (visits, coverage, what was forgotten) is worked out here and kept nowhere else.
"""

import json
import math
import re
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import summary
from flags import MILLION, RECIPES, spelt
from machine import copy_to_device
from model import count_parameters

if TYPE_CHECKING:
    from evaluate import Scores

FILE = "metrics.jsonl"
TRACKED = 8  # batches that --track-forgetting follows, from all along the order of the text
PATIENCE = 200  # updates after which a run on the built-in corpus says why its pairs are still near guessing
# What --mode=random reaches on the built-in corpus by the defaults of the preset tiny (results/e1-lr.json, 2e-3).
RANDOM = {"val_loss": 2.56, "toy": 97.2}

# --- Reading ----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> list[dict]:
    """The records of a run; of a run that goes on, or was killed, without a half-written last line.

    Raises ValueError, one line, if the file is missing or damaged elsewhere than at its end.
    """
    file, records = folder / FILE, []
    if not file.is_file():
        raise ValueError(f"{file}: missing; it is the record of a run")
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["update"] += 0
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines):
                raise ValueError(f"{file}: line {number} is damaged; mend it or delete that line") from None
            break
        records.append(record)
    return records


def finite(value: object) -> object:
    """The value with NaN and the infinities, which JSON does not know, as None, however deep inside."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def updates(records: list[dict]) -> list[dict]:
    return [record for record in records if "loss" in record]


def evaluations(records: list[dict]) -> list[dict]:
    return [record for record in records if "val_loss" in record]


def forgetting(records: list[dict]) -> list[list]:
    """Entries [batch, updates since, loss then, loss now] of all measurements that gave a number."""
    return [entry for record in records for entry in record.get("forgetting", []) if None not in entry]


def visits(records: list[dict]) -> list[list[dict]]:
    """The updates of each visit to a batch, in order; the last visit may still go on."""
    found: list[list[dict]] = []
    for record in updates(records):
        if record["repeat"] == 1 or not found:
            found.append([])
        found[-1].append(record)
    return found


def seen(records: list[dict]) -> set[int]:
    """The batches met so far."""
    return {record["batch"] for record in updates(records)} - {None}


# --- Writing ----------------------------------------------------------------------------------------------------------


def distance(D: list[Tensor]) -> float:
    """The 2-norm over all tensors together."""
    return torch.nn.utils.get_total_norm(D).item()


def drift(W: list[Tensor], anchor: list[Tensor], layers: list[str]) -> dict[str, float | dict[str, float]]:
    """How far W is from W_{t,0}. `layers` names the layer that each tensor belongs to.

    anchor_dist: |W - W_{t,0}|_2 over all tensors; anchor_by_layer: the same for each layer, in the order they come in;
    unmoved: the share of weights that are exactly at their anchor (0 to 1).
    """
    D = torch._foreach_sub(W, anchor)
    by_layer: dict[str, list[Tensor]] = {}
    for layer, d in zip(layers, D, strict=True):
        by_layer.setdefault(layer, []).append(d)
    return {
        "anchor_dist": distance(D),
        "anchor_by_layer": {layer: distance(part) for layer, part in by_layer.items()},
        "unmoved": 1 - sum(d.count_nonzero() for d in D).item() / sum(d.numel() for d in D),
    }


class Journal:
    """The record of a run while it goes on. Without a folder (other processes, benchmarks) nothing is written."""

    def __init__(self, run, folder: Path | None):
        self.run, self.file, self.norms, self.first = run, folder and folder / FILE, {}, run.update
        self.seen: set[int] = set()  # the batches met so far
        self.tracked = {int(i * (run.stream.n_batches - 1) / (TRACKED - 1)): None for i in range(TRACKED)}
        self.W = [w.detach() for w in run.model.parameters()]
        if self.file:
            self.remember(read(folder) if self.file.exists() else [])
            self.metrics = open(self.file, "ab", buffering=0)  # noqa: SIM115
            self.hooks = [
                run.optimizer.register_step_pre_hook(lambda *_: self.before_step()),
                run.optimizer.register_step_post_hook(lambda *_: self.after_step()),
            ]
        self.bar = tqdm(total=run.end, initial=run.update, bar_format="{n_fmt}/{total_fmt} {bar:6}{postfix}",
                        dynamic_ncols=True, mininterval=0.5,
                        disable=None if self.file else True)  # fmt: skip  # None: shown on a terminal only
        self.start_clock()

    def start_clock(self) -> None:
        """The time until the next update is time spent on training."""
        self.began = time.perf_counter()

    def remember(self, records: list[dict]) -> None:
        """What is needed of these records later on: the batches, and the last update on each of those tracked."""
        self.seen |= seen(records)
        self.tracked |= {record["batch"]: record for record in updates(records) if record["batch"] in self.tracked}

    def record(self, **record) -> None:
        """One line of metrics.jsonl."""
        if not self.file:
            return
        self.remember([record])
        line = json.dumps(finite(record)).encode() + b"\n"
        try:
            while line:
                line = line[self.metrics.write(line) :]  # a disk that fills up takes a part of it
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from None

    def before_step(self) -> None:
        """The optimizer calls it: every --norms-every updates keep W, to measure its step."""
        due = (self.run.update + 1) % self.run.args.norms_every == 0
        self.before = [w.clone() for w in self.W] if due else None

    def after_step(self) -> None:
        """The optimizer calls it: |W' - W|, and keep W', to measure the pull-back."""
        if self.before:
            self.norms = {"step_norm": distance(torch._foreach_sub(self.W, self.before))}
            self.before = [w.clone() for w in self.W] if self.run.anchor else None

    def update(self, loss: float, alpha: float | None, lr: float) -> None:
        """One update, after its pull-back: loss in nats per token, alpha before it is clamped, the learning rate."""
        run, args = self.run, self.run.args
        now = time.perf_counter()
        run.seconds, self.began = run.seconds + now - self.began, now
        if not self.file:
            return
        if self.norms and self.before:
            pulled = distance(torch._foreach_sub(self.W, self.before))
            names = [name for name, _ in run.model.named_parameters()]
            layers = [re.fullmatch(r"model\.(?:layers\.)?(\w+)\..*", name)[1] for name in names]  # embed_tokens, 0, ...
            self.norms |= {"pull_norm": pulled, **drift(self.W, run.anchor, layers)}
        tokens, repeat = run.update * args.batch_size * args.block_size, run.alpha.repeats
        where = {"epoch": run.stream.epoch + 1, "batch": run.stream.batch, "repeat": repeat}
        norms = {"step_norm": None, "pull_norm": None, "anchor_dist": None} | self.norms
        numbers = {"loss": loss, "alpha": alpha, "lr": lr, **norms, "done": run.alpha.done, "tokens": tokens}
        self.record(update=run.update, **where, **numbers)
        self.norms, self.before = {}, None
        shown_alpha = "" if alpha is None else f"alpha {alpha:.2f}, repeat {repeat}, "
        left = tqdm.format_interval((run.end - run.update) * run.seconds / run.update)  # evaluations do not count
        shown = f"loss {loss:.2f}, {shown_alpha}{tokens / run.seconds:,.0f} tokens/s, {left} left"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if run.update == self.first + 20 < run.end:
            self.say(f"about {left} of training left, evaluations not counted")
        if args.mode == "bcp" and run.update == math.ceil(run.budget / 10):
            self.outlook()
        if run.update == PATIENCE and run.corpus.pairs and run.update < run.end:
            self.say("frequent words are learnt first, so the pairs stay near 50 % for now; agreement comes later")
        if args.track_forgetting and run.update % args.track_forgetting == 0:
            self.forgetting()

    def outlook(self) -> None:
        """A warning if the budget, at the pace of the visits so far, ends before the text has gone by."""
        run, args, records = self.run, self.run.args, read(self.file.parent)
        found = visits(records)
        repeats = statistics.fmean(map(len, [visit for visit in found if visit[-1]["done"]] or found))
        n, of, goal = run.budget / repeats, run.stream.n_batches, suggested_goal(records, args.epochs)
        if n < of:
            self.say(f"warning: at this pace the run sees {n:.0f} of {of} batches, --goal={args.goal:g} is low; "
                     f"with --goal={goal} it would see all")  # fmt: skip

    def forgetting(self) -> None:
        """Score some batches met before again."""
        run, stream, found = self.run, self.run.stream, []
        for batch, record in sorted(self.tracked.items()):
            if record and batch != stream.batch:
                rows = batch * stream.batch_size + np.arange(stream.batch_size)
                x, y = (copy_to_device(part, run.device) for part in stream.blocks(rows))
                parts = zip(x.chunk(run.args.grad_accum), y.chunk(run.args.grad_accum), strict=True)
                with torch.no_grad(), run.autocast:
                    now = torch.stack([run.model(*part) for part in parts]).mean().item()
                found.append([batch, run.update - record["update"], record["loss"], now])
        self.record(update=run.update, forgetting=found)
        self.start_clock()

    def evaluation(self, scores: "Scores") -> None:
        """One evaluation of the weights as they are."""
        if not self.file:
            return
        pairs = {uid: score["accuracy"] for uid, score in scores.pairs.items()} if scores.pairs else None
        self.record(update=self.run.update, val_loss=scores.val_loss, toy=scores.toy, pairs=pairs)
        batches = f", {len(self.seen)} of {self.run.stream.n_batches} batches seen"
        self.say(f"update {self.run.update:5}: {scores}{batches}")

    def say(self, line: str) -> None:
        """A line above the progress bar, at once also where the output is a file."""
        self.bar.write(line)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        if self.file:
            self.metrics.close()
            for hook in self.hooks:
                hook.remove()


# --- Header and report ------------------------------------------------------------------------------------------------


def header(run, goal_given: bool = True) -> None:
    """What a run begins with."""
    args, meta = run.args, run.corpus.meta
    print(f"run     {run.folder}" + (f", going on after update {run.update}" if run.update else ""))
    print(f"model   {args.preset}: {count_parameters(run.model):,} parameters, {run.device}, {args.dtype}")
    print(f"text    {meta['corpus']}: {summary(args.data, run.corpus)}")
    sizes = f"{args.batch_size} x {args.block_size} tokens, vocabulary {meta['vocab_size']:,}"
    print(f"batches {run.stream.n_batches} of {sizes}")
    if args.recipe:
        chosen = " ".join(spelt(name, getattr(args, name)) for name in RECIPES[args.recipe])
        print(f"recipe  {args.recipe}: {chosen}")
    more = "" if args.recipe or args.idle else " and half a nat"
    origin = "" if goal_given else f" ({'0.7 of ' if args.idle else ''}a bigram model's loss{more})"
    goal = f", goal {args.goal:g} nats per token{origin}" if args.mode == "bcp" else ""
    print(f"budget  {run.budget} updates{goal}")
    if run.end < args.warmup:
        print(f"note    ends at update {run.end}, within its warm-up of {args.warmup}: a lower --warmup is better here")
    if args.keep_weights == "babylm":
        text, tokens = meta["n_words"] / MILLION, run.budget * args.batch_size * args.block_size
        words, limit = tokens * text / meta["n_tokens"], 100 if text <= 10 else 1000
        print(f"words   {words:,.1f} M, {text:,.1f} M in the text; BabyLM allows {limit} M, {limit // 10} M in it")
        if words > limit or text > limit / 10:
            fitting = "a shorter text" if text > limit / 10 else f"--epochs={int(args.epochs * limit / words)}"
            print(f"        WARNING: that is more than BabyLM allows; {fitting} would be within it")


def report(run) -> None:
    """The table at the end of a run."""
    args, stream, records = run.args, run.stream, read(run.folder)
    last = evaluations(records)[-1]
    rows = [(uid, f"{score:5.1f} %") for uid, score in (last["pairs"] or {}).items()]
    n_seen, left = len(seen(records)), [visit for visit in visits(records) if visit[-1]["done"]]
    share = n_seen * stream.batch_size * args.block_size / run.text_tokens
    rows += [("batches seen", f"{n_seen} of {stream.n_batches}, in {stream.passes:.2f} passes")]
    rows += [("tokens seen", f"{100 * share:.1f} % of the training text")]
    if left:
        repeats = [len(visit) for visit in left]
        numbers = f"mean {statistics.fmean(repeats):.1f}, median {statistics.median(repeats):g}"
        rows += [("repeats of a batch", f"{numbers}, largest {max(repeats)}")]
    unconverged = sum(visit[-1]["done"] == "unconverged" for visit in left)
    if args.mode == "bcp":
        rows += [("unconverged", f"{unconverged} of {len(left)} visits, goal {args.goal:g} nats per token")]
    if kept := forgetting(records):
        lost = [now - then for _, _, then, now in kept]
        change = f"{statistics.fmean(lost):+.2f} nats from a batch's last update, at worst {max(lost):+.2f}"
        rows += [("forgetting", change)]
    speed = run.update * args.batch_size * args.block_size / run.seconds
    rows += [("training time", f"{run.seconds:.0f} s for {run.update} updates, {speed:,.0f} tokens per second")]
    usual = last["pairs"] and args.preset == "tiny" and args.epochs == 10 and run.update == run.budget
    for row, name, form, unit, chance in (("validation loss", "val_loss", ".3f", " nats per token", ""),
                                          ("minimal pairs", "toy", ".1f", " %", "; guessing has 50")):  # fmt: skip
        if last[name] is not None:
            late = [one[name] for one in evaluations(records) if one["update"] >= 0.75 * last["update"]]
            beside = chance + (f"; --mode=random has {RANDOM[name]:g}" if usual else "")
            rows += [(row, f"{last[name]:{form}}{unit}, {statistics.fmean(late):{form}} over the last quarter{beside}")]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows))
    if 2 * unconverged > len(left) and (better := suggested_goal(records)):
        few = "no visit" if unconverged == len(left) else "less than half of the visits"
        print(f"\n{few} converged: --goal={args.goal:g} is too low here; a little above what "
              f"--mode=random reaches is good, and by this run's losses try --goal={better}")  # fmt: skip


def suggested_goal(records: list[dict], repeats: int | None = None) -> float | None:
    """The goal with which half of the visits would have converged (in so many repeats), nats per token; or None.

    With threshold 1 a visit ends when the mean of L over its repeats is down to the goal: the median of that mean.
    """
    means = [statistics.fmean(record["loss"] for record in visit[:repeats]) for visit in visits(records)]
    return math.ceil(10 * statistics.median(means)) / 10 if means else None
