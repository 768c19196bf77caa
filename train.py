"""Train a language model with batch-wise convergent pre-training, or with one of the regimes it is compared to.

    python train.py --mode=bcp --p=1                    # the built-in corpus, two minutes on a laptop
    python train.py --mode=bcp --p=1 --data=my_texts    # a file or a folder of text

The regimes (--mode) differ by which batch comes next (run.stream) and by when a batch is done (run.alpha: alpha, or a
number of times), and by nothing else. The loop is `train`; what it calls, set-up and the program follow.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import flags

ARGS = flags.get_args(description=__doc__) if __name__ == "__main__" else None  # wrong flags end before torch is loaded

import numpy as np
import torch
from torch import Tensor, distributed

import bcp
import checkpoint
import curriculum
import data
import evaluate
import machine
from journal import Journal, header, report
from machine import copy_to_host, is_first, n_processes, on_device
from model import PRESETS, Transformer

SAVE_SECONDS = 300  # of training between checkpoints, without --save-every


@dataclass
class Run:
    """What the loop works with."""

    args: argparse.Namespace
    folder: Path | None  # None: nothing is written
    device: torch.device
    corpus: data.Corpus
    validation: tuple[np.ndarray, np.ndarray]  # inputs and targets, (N, T)
    text: dict  # digests of the text and of its order: what a checkpoint knows it by
    text_tokens: int  # of the whole training text
    budget: int  # U, updates: the same in every regime, whatever share of the text and of the rows is new
    end: int  # where this run stops: the budget, or --max-updates before it
    kept: set[int]  # updates after which the weights are kept
    forward: Callable  # the model, compiled, in several processes
    autocast: torch.autocast
    # What changes while the run goes on, and what a checkpoint holds.
    model: Transformer
    optimizer: torch.optim.Optimizer
    anchor: list[Tensor]  # W_{t,0}; empty outside bcp
    alpha: bcp.Alpha | bcp.Times
    stream: curriculum.Stream
    update: int = 0
    seconds: float = 0.0  # spent on training alone
    saved: float = 0.0  # of them, those before the last checkpoint


def train(run: Run, journal: Journal, signals: list[int]) -> bool:
    """Train until the budget is spent. Returns whether one of the signals, caught meanwhile, has ended it before.

    Raises FloatingPointError at the first loss or gradient that is not finite; the weights are those before it.
    """
    args, stream, alpha, W = run.args, run.stream, run.alpha, list(run.model.parameters())
    stop = False
    if run.update == 0:
        look(run, journal)

    while run.update < run.end and not stop:
        rate = share_of_rate(run.update, run.budget, args)
        x, y = on_device(stream.blocks(), run.device)  # X_t
        if alpha.repeats == 0:
            bcp.drop_anchor(run.anchor, W)
            if args.moments == "fresh":
                bcp.start_moments(run.optimizer)

        # L, the mean cross-entropy of W on the batch, and its gradient.
        L, stop = loss_and_gradient(run, x, y, stop=bool(signals))

        # alpha <- max(0, alpha + min(1, eta (L - goal)));  W' <- AdamW's step on alpha L.
        raw_alpha = alpha.update(L)
        norm = bcp.clip_and_scale([w.grad for w in W], args.clip, alpha.alpha if args.alpha_on == "loss" else 1.0)
        finite = {"loss": L, "gradient": norm} | add_replay(run, W)
        set_rate(run.optimizer, args.lr * rate, alpha.alpha if args.alpha_on == "lr" else 1.0)
        step_if_finite(run, finite)

        # W <- W', pulled back toward the anchor.
        C = args.C * rate if args.C_schedule == "lr" else args.C
        bcp.pull_back(W, run.anchor, C, args.p, prox=args.pull == "prox")

        # Has the batch been learnt? Then the next one, else the same again.
        run.update += 1
        journal.update(L, raw_alpha, args.lr * rate)
        if alpha.done:
            stream.advance()
            alpha.restart()

        look(run, journal, stop)
    return bool(stop)


# --- What the loop calls ----------------------------------------------------------------------------------------------


def share_of_rate(update: int, budget: int, args: argparse.Namespace) -> float:
    """The learning rate of an update (counted from 0) as a share of its peak."""
    if update < args.warmup:
        return (update + 1) / args.warmup
    left = 1.0
    if args.lr_schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * (update - args.warmup) / max(1, budget - args.warmup)))
    if args.lr_schedule == "wsd":
        left = min(1.0, (budget - update) / max(1.0, 0.2 * budget))
    return args.lr_end + (1 - args.lr_end) * left


def loss_and_gradient(run: Run, x: Tensor, y: Tensor, stop: bool = False) -> list[float]:
    """L, the mean cross-entropy of the batch x, y (B, T) in nats per token; its gradient is left in the weights.

    The batch is worked through in equal parts. L is on its way to the host while the last backward pass runs. With it
    goes a second number, above 0 if this process or another one is to stop after this update.
    """
    loss, blocks, parts = torch.zeros((), device=x.device), [], run.args.grad_accum
    for left, part_x, part_y in zip(reversed(range(parts)), x.chunk(parts), y.chunk(parts), strict=True):
        with machine.keep_gradients(run.forward, more=left > 0):
            with run.autocast:
                if run.args.mode == "lfr":  # which follows the loss of every block
                    blocks.append(run.forward(part_x, part_y, reduction="none").mean(dim=1))  # (B / parts)
                    part = blocks[-1].mean() / parts
                else:
                    part = run.forward(part_x, part_y) / parts
            loss += part.detach()
            if not left:
                read = copy_to_host(machine.mean_over_processes(torch.stack((loss, torch.full_like(loss, stop)))))
            part.backward()
    if blocks:
        run.stream.track(torch.cat(blocks).detach().cpu().numpy())
    return read()


def add_replay(run: Run, W: list[Tensor]) -> dict[str, float | Tensor]:
    """From the gradient g in the weights to (1 - f) g + f times that on replayed blocks, which is clipped by itself.

    Returns what must be finite of them; nothing without --replay.
    """
    args = run.args
    if not args.replay:
        return {}
    g = [w.grad.clone() for w in W]  # of several processes, what W has are views of what the next pass writes
    run.optimizer.zero_grad()
    rows = run.stream.replay(flags.n_replayed(args), args.replay_power, run.update)
    L, _ = loss_and_gradient(run, *on_device(run.stream.blocks(rows), run.device))
    norm = bcp.clip_and_scale([w.grad for w in W], args.clip, args.replay)
    torch._foreach_add_([w.grad for w in W], g, alpha=1 - args.replay)
    return {"loss of the replayed rows": L, "gradient of the replayed rows": norm}


def set_rate(optimizer: torch.optim.Optimizer, lr: float, alpha: float) -> None:
    """The learning rate of the next step, times alpha. Weight decay, which AdamW multiplies by it, stays."""
    alpha = max(alpha, 1e-8)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * alpha, group["decay"] / alpha


def step_if_finite(run: Run, numbers: dict[str, float | Tensor]) -> None:
    """W' = AdamW's step; FloatingPointError, and W and the moments as they were, if one of the numbers is not finite.

    The fused AdamW of CUDA looks at `found_inf` on the device, so that a GPU need not wait for the host, which looks
    when the step is on its way. Elsewhere the host looks first.
    """
    finite = sum(numbers.values()).isfinite()
    applied = copy_to_host(finite)
    if run.device.type == "cuda":
        run.optimizer.found_inf = 1.0 - finite.float()
    if (run.device.type == "cuda" or applied()) and run.alpha.done != "idle":
        run.optimizer.step()
    run.optimizer.zero_grad()
    if not applied():
        name, value = next((name, x) for name, x in numbers.items() if not math.isfinite(x))
        raise FloatingPointError(f"update {run.update + 1}, batch {run.stream.batch}: the {name} is {float(value)}; "
                                 "try a lower --lr, or --dtype=float32")  # fmt: skip


def look(run: Run, journal: Journal, stop: float = False) -> None:
    """Evaluate, keep the weights and save when it is time.

    From a checkpoint the run goes on to the same weights, from the middle of a batch's repeats too.
    """
    if run.folder is None or not is_first():
        return
    args, model, last = run.args, run.model, run.update == run.end
    if run.update % args.eval_every == 0 or last:
        rows = args.batch_size // (args.grad_accum * n_processes())  # as many as fit into memory in training
        journal.evaluation(evaluate.assess(model, *run.validation, rows, run.corpus.pairs, run.corpus.eot))
    if run.update in run.kept:
        checkpoint.save(run.folder / f"weights-{run.update}.pt", {"model": model.state_dict()})
    late = run.seconds - run.saved >= SAVE_SECONDS if args.save_every is None else run.update % args.save_every == 0
    if run.update and (late or last or stop):
        anchor = run.anchor if run.alpha.repeats else []  # between two batches the anchor is W itself
        state = {"model": model.state_dict(), "optimizer": run.optimizer.state_dict(), "anchor": anchor,
                 "alpha": dataclasses.asdict(run.alpha), "stream": run.stream.state(), "update": run.update,
                 "seconds": run.seconds, "run": {"flags": flags.of_result(args), "text": run.text}}  # fmt: skip
        checkpoint.save_run(run.folder, state)
        run.saved = run.seconds
    journal.start_clock()


def restore(run: Run) -> None:
    """Put the run where its checkpoint stands. Raises CheckpointError if it is damaged or of another run."""
    file, alpha = run.folder / checkpoint.NAME, dataclasses.asdict(run.alpha)
    state = checkpoint.load_run(run.folder, run.args, run.text)
    checkpoint.fill(run.model, state["model"], file)
    checkpoint.fill_moments(run.optimizer, state["optimizer"], file)
    own = [alpha, run.stream.state(), 0, 0.0]  # an older alpha may know less
    saved = [alpha | state["alpha"], state["stream"] | {"hardest": None}, state.get("update"), state.get("seconds")]
    checkpoint.check(saved, own, file, "alpha, stream, update, seconds")
    run.alpha = type(run.alpha)(**state["alpha"])
    checkpoint.check(state.get("anchor"), run.anchor if run.alpha.repeats else [], file, "anchor")
    for anchor, saved in zip(run.anchor, state["anchor"], strict=False):
        anchor.copy_(saved)
    run.update, run.seconds, run.saved = state["update"], state["seconds"], state["seconds"]
    try:
        run.stream.load_state(state["stream"])
        run.stream.blocks()
    except (LookupError, TypeError, ValueError):
        raise checkpoint.CheckpointError(f"{file}: damaged, it stands at no batch of the text") from None
    machine.wait_for_all()  # until all have read what the first may now change
    if is_first() and run.update < run.end:
        checkpoint.go_on(run.folder, run.update, run.args, run.kept)


# --- Set-up -----------------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace) -> Run:
    """Text to tokens, tokens to batches, sizes to a model. Raises ValueError, one line, for what does not fit."""
    device = machine.join_processes(machine.pick_device(args.device))
    machine.reuse_memory()
    args.dtype = str(machine.pick_dtype(args.dtype, device)).removeprefix("torch.")
    own_warmup = args.warmup is not None
    flags.fill_in(args, machine.usual_preset(device, data.about_words(args.data)))
    flags.check_rows(args, n_processes())
    folder = checkpoint.choose(args)
    preset = PRESETS[args.preset]
    sizes = {name: getattr(args, name) or getattr(preset, name) for name in flags.SIZES}
    config = dataclasses.replace(preset, **sizes)  # checks the sizes before the text is prepared

    with machine.first_process_first():
        wanted = {"vocab_size": args.vocab_size, "propose": preset.vocab_size, "split": args.split}
        prepared = data.prepare(args.data, args.cache, **wanted)
    corpus = data.open_prepared(prepared)
    stream = make_stream(corpus, args)
    text = corpus.meta["files"] | {"order": hashlib.blake2b(stream.tokens, digest_size=16).hexdigest()}
    text_tokens = int(np.diff(corpus.line_start)[corpus.train_lines()].sum())
    budget = args.epochs * curriculum.count_batches(text_tokens, args.block_size, args.batch_size)
    if budget == 0:
        raise ValueError(f"--batch-size={args.batch_size}: the text has {text_tokens:,} tokens, less than a batch; "
                         "take a smaller one, or a smaller --block-size")  # fmt: skip
    args.eval_every = args.eval_every or math.ceil(budget / 8)
    args.warmup = int(args.warmup if args.warmup >= 1 else args.warmup * budget)
    args.warmup = args.warmup if own_warmup else min(args.warmup, budget // 10)

    torch.manual_seed(args.seed)
    model = Transformer(dataclasses.replace(config, vocab_size=corpus.vocab_size)).to(device)
    compiled = (device.type == "cuda" if args.compile is None else args.compile) and machine.can_compile(device)
    validation, alpha = curriculum.validation_blocks(corpus, args.block_size), make_alpha(args)
    anchor = [w.detach().clone() for w in model.parameters()] if args.mode == "bcp" else []
    end, forward = min(budget, args.max_updates or budget), machine.for_all_processes(model, compiled)
    kept = flags.updates_to_keep(args, budget, end, corpus.meta["n_words"] / corpus.meta["n_tokens"])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    return Run(args, folder, device, corpus, validation, text, text_tokens, budget, end, kept, forward, autocast,
               model, adamw(model, args), anchor, alpha, stream)  # fmt: skip


def make_stream(corpus: data.Corpus, args: argparse.Namespace) -> curriculum.Stream:
    """Which batch comes next. Without --goal, the goal is made here, of the same tokens."""
    lines = curriculum.order_lines(corpus, args.order, args.difficulty, args.seed, args.data_share, args.aoa_file)
    tokens = curriculum.join(corpus, lines)
    new_rows, buffer = args.batch_size - flags.n_replayed(args), args.buffer_tokens
    if args.data_share < 1 and not curriculum.count_batches(len(tokens), args.block_size, new_rows):
        raise ValueError(f"--data-share={args.data_share:g}: leaves {len(tokens):,} tokens, too few for a batch of "
                         f"--batch-size={args.batch_size} x --block-size={args.block_size}; give more")  # fmt: skip
    stream = curriculum.Stream(tokens, args.block_size, new_rows, reshuffle=args.order == "random", seed=args.seed,
                               focus=args.mode == "lfr", once=args.stream,
                               buffer=None if buffer is None else buffer // args.block_size)  # fmt: skip
    if args.mode == "bcp" and args.goal is None:
        unseen = args.idle or args.recipe is None  # the experiments' recipes had the loss on the text that was counted
        loss = curriculum.bigram_loss(tokens, corpus.vocab_size, held_out=unseen)
        args.goal = round(0.7 * loss if args.idle else loss + 0.5 * unseen, 2)  # docs/method.md; with --idle E7
    return stream


def make_alpha(args: argparse.Namespace) -> bcp.Alpha | bcp.Times:
    """When a batch is done."""
    if args.mode != "bcp":
        return bcp.Times(args.repeats if args.mode == "curriculum-repeat" else 1)
    threshold = math.inf if args.leave_at_goal else args.threshold
    return bcp.Alpha(args.eta, args.goal, cap=args.alpha_cap, threshold=threshold, patience=args.patience,
                     max_repeats=args.max_repeats, leak=args.alpha_leak, goal_rel=args.goal_rel,
                     idle=args.idle)  # fmt: skip


def adamw(model: Transformer, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices (the embedding too), none on biases and norms."""
    groups = [
        {"params": [w for w in model.parameters() if w.dim() >= 2], "decay": args.weight_decay},
        {"params": [w for w in model.parameters() if w.dim() < 2], "decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=1e-8, fused=True)


# --- The program ------------------------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> int:
    """The whole program; returns its exit status."""
    goal_given = args.goal is not None
    with contextlib.ExitStack() as held:
        try:
            with machine.short_of_memory("try a smaller --preset"):
                run = start(args)
            resuming = bool(args.resume and any(run.folder.glob("checkpoint*.pt")))
            machine.wait_for_all()  # until all have seen the folder as it is now
            if is_first():
                run.folder = checkpoint.make(args)
                held.enter_context(checkpoint.lock(run.folder))
            if resuming:
                restore(run)
            elif is_first():
                checkpoint.begin(run.folder, args, run.model, run.corpus, run.stream.n_batches)
        except ValueError as error:  # a wrong corpus, size, device or checkpoint; the message is one line
            flags.get_parser().error(str(error))
        return go(run, goal_given)


def go(run: Run, goal_given: bool = True) -> int:
    """Train the run, or what is left of it; returns the program's exit status."""
    scoring = "score it with: " + shlex.join(["python", "evaluate.py", str(run.folder)])
    scoring += "" if run.corpus.pairs else " --data EVAL (BabyLM's files: docs/evaluation.md)"
    if run.update >= run.end:
        more = f"; {to_go_on(run)}" if run.end < run.budget else ""
        print(f"{run.folder} is finished after {run.update} updates; {scoring}{more}")
        return 0
    header(run, goal_given)
    lost = (RuntimeError,) if n_processes() > 1 else ()  # what torch raises when another process has died
    with machine.caught_signals() as signals:  # torchrun sends one then: our message comes first
        try:
            with (
                contextlib.closing(Journal(run, run.folder if is_first() else None)) as journal,
                machine.short_of_memory(flags.less_memory(run.args)),
            ):
                stopped = train(run, journal, signals)
        except (OSError, FloatingPointError, *lost) as error:  # a full disk, say; what was saved before is whole
            saved = f"; {to_go_on(run)}" if (run.folder / checkpoint.NAME).exists() else "; nothing was saved yet"
            known = isinstance(error, OSError | FloatingPointError)
            trouble = error if known else f"another process of this run has ended ({data.one_line(error)})"
            print(f"train.py: {trouble}{saved}", file=sys.stderr)
            return 1
    if stopped:
        number = signals[0] if signals else signal.SIGTERM  # another process got it
        print(f"\n{signal.Signals(number).name}: saved at update {run.update}; {to_go_on(run)}")
        return 128 + number
    if is_first():
        report(run)
        print(f"\nthe run is in {run.folder}; {scoring}")
    return 0


def to_go_on(run: Run) -> str:
    """How; a run that --max-updates has ended needs more of them."""
    more = [f"--max-updates={run.budget}"] if run.update >= run.end else []
    return "to go on: " + shlex.join(["python", "train.py", "--resume", f"--out={run.folder}", *more])


if __name__ == "__main__":
    status = main(ARGS)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(status)
