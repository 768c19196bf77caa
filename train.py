"""Train a language model with batch-wise convergent pre-training, or with one of the regimes it is compared to.

    python train.py --mode=bcp --p=1                    # the built-in corpus, two minutes on a laptop
    python train.py --mode=bcp --p=1 --data=my_texts    # a file or a folder of text

The regimes (--mode) differ by which batch comes next and by when a batch is done; see `train` at the end of this file.
"""

import argparse
import importlib.util
import math
import sys
from pathlib import Path

# --- Settings ---------------------------------------------------------------------------------------------------------

# What a preset of model.py is trained with unless a flag says otherwise.
PRESET_DEFAULTS = {
    "117m": {"block_size": 512, "batch_size": 64, "lr": 6e-4, "warmup": 200},
    "small": {"block_size": 256, "batch_size": 32, "lr": 1e-3, "warmup": 100},
    "tiny": {"block_size": 64, "batch_size": 32, "lr": 2e-3, "warmup": 20},
}
# The default C for each p, measured (results/LOG.md): a share of the peak learning rate, about what AdamW moves
# a weight by, and a share of the distance.
DEFAULT_C = {1: 0.15, 2: 0.1}

SIZES = ("n_layer", "n_embd", "n_head", "n_kv_head", "n_mlp")

# Flags which may differ when a run is resumed: none of them changes what is computed.
RESUMABLE = {"resume", "overwrite", "out", "max_updates", "max_bad_updates", "save_every", "device", "compile", "cache",
             "plot"}  # fmt: skip


def number(kind: type, least: float, most: float = math.inf, above: bool = False):
    """A parser of flags: a finite number of that kind, at least `least` (more than it with `above`), at most `most`."""
    wanted = {int: "a whole number", float: "a number"}[kind] + (" above " if above else " of at least ") + f"{least:g}"
    wanted += f" and at most {most:g}" if most < math.inf else ""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most) or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text!r}: must be {wanted}")
        return value

    return parse


def device_name(text: str) -> str:
    """A parser of flags: the name of a device, whether or not it is there."""
    kind, _, index = text.partition(":")
    if text not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and index.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto, cpu, cuda, cuda:N or mps")
    return text


def get_parser() -> argparse.ArgumentParser:
    """The flags. `python train.py --help` prints this list."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage=argparse.SUPPRESS,  # so that an error is one line
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    count, positive = number(int, 1), number(float, 0, above=True)

    # fmt: off
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data", default="toy", help="toy (built in), a text file, a folder searched for *.txt and *.train (.gz too), "
        "a prepared folder, babylm-10m or babylm-100m (default: toy)")
    add("--tokenizer", choices=("bpe", "gpt2"), default="bpe", help="bpe, trained on the text, or gpt2 (default: bpe)")
    add("--vocab-size", type=number(int, 257, 65536), help="tokens, end-of-text included (default: the preset's)")
    add("--val-share", type=number(float, 0, 0.5), default=0.05, help="share of documents held out (default: 0.05)")
    add("--val-tokens", type=count, default=65536, help="tokens of them in an evaluation, at most (default: 65536)")
    add("--encoding-errors", choices=("strict", "replace"), default="strict",
        help="text that is not UTF-8: stop, or put U+FFFD in its place (default: strict)")
    add("--cache", type=Path, default=Path("data/cache"), help="where prepared corpora are kept (default: data/cache)")

    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--preset", choices=PRESET_DEFAULTS, help="117m, small or tiny (default: 117m with a GPU, else tiny)")
    add("--n-layer", type=count, help="transformer blocks (default: the preset's)")
    add("--n-embd", type=count, help="width, numbers per token (default: the preset's)")
    add("--n-head", type=count, help="query heads (default: the preset's)")
    add("--n-kv-head", type=count, help="key/value heads (default: the preset's)")
    add("--n-mlp", type=count, help="hidden width of the MLP (default: the preset's)")
    add("--block-size", type=count, help="T, tokens per sequence (default: tiny 64, small 256, 117m 512)")

    group = parser.add_argument_group("method")
    add = group.add_argument
    add("--mode", choices=("random", "curriculum", "curriculum-repeat", "bcp", "lfr"), default="bcp",
        help="random: each batch once, reshuffled every epoch; curriculum: each batch once, easy to hard; "
        "curriculum-repeat: each batch several times in a row; bcp: each until alpha has converged; lfr: all, then the "
        "hardest blocks, then all, in cycles (default: bcp)")
    add("--order", choices=("curriculum", "random", "reshuffled"), help="order of the lines that batches are cut from: "
        "easy to hard, or shuffled once; reshuffled: and the batches anew in every epoch (default: reshuffled with "
        "--mode=random and lfr, else curriculum)")
    add("--difficulty", choices=("surprisal", "length", "rarity"), default="surprisal",
        help="of a line: its unigram surprisal, its tokens, its mean surprisal (default: surprisal)")
    add("--data-share", type=number(float, 0, 1, above=True), default=1.0, metavar="S",
        help="only the easiest lines, up to this share of the text; the budget stays that of the whole (default: 1)")
    add("--repeats", type=count, help="curriculum-repeat: times in a row (default: --epochs)")
    add("--p", type=int, choices=(1, 2), default=1, help="bcp: the norm of the pull-back to the anchor (default: 1)")
    add("--C", type=number(float, 0), help="bcp: strength of the pull-back at the peak learning rate: with p=1 weight "
        f"per update (default: {DEFAULT_C[1]:g} of --lr), with p=2 share of the distance (default: {DEFAULT_C[2]:g})")
    add("--prox", action="store_true", help="bcp: the proximal step, which never overshoots the anchor (default: off)")
    add("--eta", type=positive, default=0.1, help="bcp: learning rate of alpha, per nat (default: 0.1)")
    add("--goal", type=positive, help="bcp: L_goal, nats per token; good is a little above what --mode=random reaches "
        "(default: the loss of a bigram model of the text)")
    add("--threshold", type=positive, default=1.0, help="bcp: alpha has converged below it (default: 1)")
    add("--patience", type=count, default=2, help="bcp: ... and after this many falls in a row (default: 2)")
    add("--max-repeats", type=count, default=100, help="bcp: leave a batch after so many repeats (default: 100)")

    group = parser.add_argument_group("remedies and controls", "none of them is the poster's")
    add = group.add_argument
    add("--alpha-on", choices=("loss", "lr", "none"), default="loss",
        help="bcp: alpha scales the loss; the learning rate, where AdamW feels it; or nothing, and only decides when a "
        "batch is left (default: loss)")
    add("--alpha-leak", type=number(float, 0, 1), default=0.0, metavar="X",
        help="bcp: alpha goes back toward 1 by this share at every update (default: 0)")
    add("--goal-rel", type=number(float, 0), default=0.0, metavar="R",
        help="bcp: the goal of a batch is at least this share of its own first loss (default: 0)")
    add("--replay", type=number(float, 0, 0.9), default=0.0, metavar="F",
        help="share of a batch's rows drawn from batches met before; alpha looks at the others (default: 0)")
    add("--replay-power", type=number(float, 0), default=1.0, metavar="POWER",
        help="a batch met k batches ago is drawn in proportion to k to the minus this power (default: 1)")
    add("--stream", action="store_true", help="the text goes by once: a batch that was left does not come back; the "
        "rest of the budget goes to batches drawn from the buffer, or without one to the last batch (default: off)")
    add("--buffer-tokens", type=number(int, 0), metavar="N", help="tokens in the buffer that --replay draws from, a "
        "uniform sample of the text met so far (default: all of that; with --stream 0)")
    add("--focus-share", type=number(float, 0, 1, above=True), default=0.5,
        help="lfr: share of the blocks that counts as the hardest (default: 0.5)")
    add("--track-forgetting", type=count, nargs="?", const=60, metavar="N",
        help="every N updates (without N: 60) score some batches met before again (default: off)")

    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--epochs", type=count, default=10, help="the budget in every mode: epochs x batches updates; --resume may "
        "raise it if --lr-schedule=constant (default: 10)")
    add("--batch-size", type=count, help="sequences per update (default: tiny and small 32, 117m 64)")
    add("--grad-accum", type=count, default=1, help="parts that a batch is processed in, to save memory (default: 1)")
    add("--lr", type=positive, help="peak learning rate of AdamW (default: tiny 2e-3, small 1e-3, 117m 6e-4)")
    add("--lr-schedule", choices=("constant", "cosine", "wsd"), default="constant",
        help="after the warm-up; cosine, and wsd in its last fifth, fall to 0 (default: constant)")
    add("--warmup", type=number(int, 0), help="updates of linear warm-up (default: tiny 20, small 100, 117m 200)")
    add("--weight-decay", type=number(float, 0), default=0.1, help="on matrices only (default: 0.1)")
    add("--beta1", type=number(float, 0, 0.9999), default=0.9, help="of AdamW (default: 0.9)")
    add("--beta2", type=number(float, 0, 0.99999), default=0.95, help="of AdamW (default: 0.95)")
    add("--clip", type=positive, default=1.0, help="largest norm of the gradient of L, before alpha (default: 1)")
    add("--average-last", type=number(int, 0), default=0, metavar="K",
        help="also evaluate and save the mean of the weights at the last K evaluations (default: 0, off)")

    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--out", type=Path, help="run folder (default: a fresh numbered one, such as out/bcp-p1-3)")
    add("--resume", nargs="?", const="last", choices=("last", "previous"), help="go on with the run in --out, with its "
        "flags, from its last checkpoint, or from the one before (default: a new run)")
    add("--overwrite", action="store_true", help="replace the run in --out (default: off)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of weights and shuffling (default: 0)")
    add("--max-updates", type=count, help="stop after so many updates; schedules keep the whole budget in view "
        "(default: the budget)")
    add("--max-bad-updates", type=count, default=10, help="an update with a loss or gradient that is not finite "
        "changes nothing, but counts, as a repeat of its batch too; stop after so many in a row (default: 10)")
    add("--eval-every", type=count, help="updates between evaluations (default: an eighth of the budget)")
    add("--save-every", type=count, default=200, help="updates between checkpoints (default: 200)")
    add("--norms-every", type=count, default=10, help="updates between two measurements of norms (default: 10)")
    add("--plot", action="store_true", help="in the end draw the run into its folder, as python -m tools.plot does "
        "(default: off)")
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of matrix products; weights stay float32 (default: bfloat16 on a GPU that has it, else float32)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU only)")
    # fmt: on
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked as far as that is possible without looking at files. Ends the program on a wrong one."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.resume:
        args = resumed_args(parser, args, argv)
    if args.mode == "lfr" and args.replay:
        parser.error("argument --replay: not with --mode=lfr, whose batches are drawn anew; give one of the two")
    if args.mode == "lfr" and args.stream:
        parser.error("argument --stream: not with --mode=lfr, which goes through the text again; give one of the two")
    if args.stream and args.replay and not args.buffer_tokens:
        parser.error("argument --stream: --replay needs a buffer then; add its size, such as --buffer-tokens=16384")
    if args.plot and importlib.util.find_spec("matplotlib") is None:  # not only hours later
        parser.error("argument --plot: matplotlib is missing: pip install matplotlib")
    return args


def resumed_args(parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None):
    """The flags of the run in --out, and on top of them those of the command line that do not change its result."""
    if args.out is None:
        parser.error("argument --resume: needs --out=FOLDER, the run to go on with")
    if args.overwrite:
        parser.error("argument --resume: goes on with a run, --overwrite replaces it; give one of the two")
    import checkpoint

    if not (args.out / checkpoint.CONFIG).exists():
        return args  # nothing to go on with yet: a new run
    try:
        saved = checkpoint.read_config(args.out)["flags"]
    except ValueError as error:
        parser.error(f"argument --resume: {error}")
    parser.set_defaults(**{name: value for name, value in saved.items() if name not in ("resume", "overwrite", "out")})
    args = parser.parse_args(argv)
    changed = {name for name, value in saved.items() if name not in RESUMABLE and getattr(args, name) != value}
    if args.lr_schedule == "constant" and args.epochs > saved.get("epochs", args.epochs):
        changed -= {"epochs"}  # the other schedules span the budget
    if changed:
        flags = ", ".join(spelt(name, saved[name]) for name in saved if name in changed)
        parser.error(f"argument --resume: the run was started with {flags}; leave that as it was, or start a new run")
    return args


def spelt(name: str, value: object) -> str:
    """A flag as one would type it: --seed=0, --prox, "no --goal"."""
    flag = "--" + name.replace("_", "-")
    return f"no {flag}" if value is None or value is False else flag if value is True else f"{flag}={value}"


ARGS = get_args() if __name__ == "__main__" else None  # wrong flags end here, before the slow import of torch

# --- Set-up -----------------------------------------------------------------------------------------------------------

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import distributed  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from tqdm import tqdm  # noqa: E402

import bcp  # noqa: E402
import checkpoint  # noqa: E402
import curriculum  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
from machine import (  # noqa: E402
    copy_to_device,
    copy_to_host,
    first_process_first,
    is_first,
    join_processes,
    mean_over_processes,
    n_processes,
    own_rows,
    pick_device,
    pick_dtype,
    reuse_memory,
    wait_for_all,
)
from model import PRESETS, Transformer, count_parameters  # noqa: E402


@dataclasses.dataclass
class Run:
    """Everything that the loop works with."""

    args: argparse.Namespace
    folder: Path
    device: torch.device
    corpus: data.Corpus
    validation: tuple[np.ndarray, np.ndarray]  # inputs and targets, (N, T)
    stream: curriculum.Stream
    model: Transformer
    optimizer: torch.optim.Optimizer
    anchor: list[torch.Tensor]  # W_{t,0}; empty outside bcp
    alpha: bcp.Alpha
    text_tokens: int  # of the whole training text
    saved: int = 0  # the update of the last checkpoint
    # Where the run stands; every checkpoint holds it.
    update: int = 0
    repeat: int = 0  # updates on the current batch so far
    seconds: float = 0.0  # spent on training alone
    visits: list[int] = dataclasses.field(default_factory=list)  # how many repeats each finished batch took
    unconverged: int = 0  # how many of these were stopped by --max-repeats
    bad_updates: int = 0  # skipped updates in a row
    seen: set[int] = dataclasses.field(default_factory=set)  # batches met so far
    left: dict[int, list] = dataclasses.field(default_factory=dict)  # --track-forgetting: batch -> [update, loss] then

    @property
    def budget(self) -> int:
        """U: the same number of updates in every regime, whatever the share of the text and of the rows that is new."""
        args = self.args
        return args.epochs * curriculum.count_batches(self.text_tokens, args.block_size, args.batch_size)

    @property
    def last_update(self) -> int:
        """Where this run ends: at its budget, or before it at --max-updates."""
        return min(self.budget, self.args.max_updates or self.budget)


PROGRESS = ("update", "repeat", "seconds", "visits", "unconverged", "bad_updates", "left")


def start(args: argparse.Namespace) -> Run:
    """Text to tokens, tokens to batches, sizes to a model. Raises ValueError, one line, for what does not fit."""
    device = join_processes(pick_device(args.device))
    reuse_memory()
    args.dtype = str(pick_dtype(args.dtype, device)).removeprefix("torch.")
    args.preset = args.preset or ("117m" if device.type == "cuda" else "tiny")
    args.order = args.order or ("reshuffled" if args.mode in ("random", "lfr") else "curriculum")
    for name, value in PRESET_DEFAULTS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.C is None:
        args.C = DEFAULT_C[args.p] * (args.lr if args.p == 1 else 1.0)
    new_rows = args.batch_size - n_replayed(args)
    if any(rows % (args.grad_accum * n_processes()) for rows in (new_rows, n_replayed(args))):
        what = f"--batch-size={args.batch_size}" + (", its new rows and its replayed ones" if args.replay else "")
        share = f" in each of {n_processes()} processes" if n_processes() > 1 else ""
        raise ValueError(f"--grad-accum={args.grad_accum}: must divide {what}{share}")
    if args.mode == "lfr" and n_processes() > 1:
        raise ValueError("--mode=lfr: follows every block's loss in one process; start it without torchrun")
    if args.mode == "curriculum-repeat":
        args.repeats = args.repeats or args.epochs
    folder = choose_folder(args)
    preset = PRESETS[args.preset]
    sizes = {name: getattr(args, name) or getattr(preset, name) for name in SIZES}
    config = dataclasses.replace(preset, **sizes)  # checks the sizes before the text is prepared

    settings = (args.tokenizer, args.vocab_size, preset.vocab_size, args.val_share, args.encoding_errors)
    with first_process_first():
        folder_of_text = data.prepare(args.data, args.cache, *settings)
    corpus = data.open_prepared(folder_of_text)
    lines = curriculum.order_lines(corpus, args.order, args.difficulty, args.seed, args.data_share)
    tokens = curriculum.join(corpus, lines)
    focus = args.focus_share if args.mode == "lfr" else None
    if args.stream:
        args.buffer_tokens = args.buffer_tokens or 0
    buffer = None if args.buffer_tokens is None else args.buffer_tokens // args.block_size
    reshuffle = args.order == "reshuffled"
    stream = curriculum.Stream(
        tokens, args.block_size, new_rows, reshuffle, args.seed, focus, once=args.stream, buffer=buffer
    )
    if args.mode == "bcp" and args.goal is None:
        args.goal = round(curriculum.bigram_entropy(tokens, corpus.vocab_size), 2)

    torch.manual_seed(args.seed)
    model = Transformer(dataclasses.replace(config, vocab_size=corpus.vocab_size)).to(device)
    lines = corpus.train_lines()
    run = Run(
        args,
        folder,
        device,
        corpus,
        curriculum.validation_blocks(corpus, args.block_size, args.val_tokens),
        stream,
        model,
        adamw(model, args),
        [w.detach().clone() for w in model.parameters()] if args.mode == "bcp" else [],
        bcp.Alpha(
            args.eta, args.goal or 0.0, args.threshold, args.patience, args.max_repeats, args.alpha_leak, args.goal_rel
        ),
        int((corpus.line_start[lines + 1] - corpus.line_start[lines]).sum()),
    )
    args.eval_every = args.eval_every or math.ceil(run.budget / 8)
    return run


def n_replayed(args: argparse.Namespace) -> int:
    """How many of a batch's rows are replayed ones."""
    return min(round(args.replay * args.batch_size), args.batch_size - 1)


def adamw(model: Transformer, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices (the embedding too), none on biases and norms."""
    groups = [
        {"params": [w for w in model.parameters() if w.dim() >= 2], "decay": args.weight_decay},
        {"params": [w for w in model.parameters() if w.dim() < 2], "decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=1e-8, fused=True)


def choose_folder(args: argparse.Namespace) -> Path:
    """The run folder: --out, or the next free number. Raises ValueError if --out holds a run that would be lost."""
    if args.out is None:
        name = f"{args.mode}-p{args.p}" if args.mode == "bcp" else args.mode
        taken = [path.name.removeprefix(f"{name}-") for path in Path("out").glob(f"{name}-*")]
        return Path("out") / f"{name}-{1 + max((int(n) for n in taken if n.isdecimal()), default=0)}"
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out}: is a file; give a folder")
    holds_run = any((args.out / name).exists() for name in (checkpoint.CONFIG, checkpoint.NAME, checkpoint.METRICS))
    if holds_run and not (args.resume or args.overwrite):
        raise ValueError(f"--out={args.out}: holds a run; add --resume to go on with it or --overwrite to replace it")
    return args.out


def make_folder(run: Run) -> None:
    """Make the run folder if it is not there."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    while run.args.out is None:
        try:
            return run.folder.mkdir()
        except FileExistsError:  # another run took the number while the text was prepared
            run.folder = choose_folder(run.args)
    run.folder.mkdir(exist_ok=True)


def open_folder(run: Run) -> None:
    """Write config.json and the tokenizer. A run that is replaced goes only now, when everything else is in order."""
    if run.args.out:
        choose_folder(run.args)  # once more: another process may have made a run there while the text was prepared
    for pattern in (checkpoint.CONFIG, "checkpoint*.pt", checkpoint.METRICS, checkpoint.AVERAGE, "weights-*.pt",
                    "eval-*", "*.part"):  # fmt: skip
        for file in run.folder.glob(pattern):
            file.unlink()
    config = {
        "flags": {name: str(value) if isinstance(value, Path) else value for name, value in vars(run.args).items()},
        "model": dataclasses.asdict(run.model.config),
        "parameters": count_parameters(run.model),
        "batches": run.stream.n_batches,
        "corpus": {"folder": str(run.corpus.folder), **run.corpus.meta},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    shutil.copyfile(run.corpus.folder / "tokenizer.json", run.folder / "tokenizer.json")
    checkpoint.write_config(run.folder, config)


def identity(run: Run) -> dict:
    """What a checkpoint has in common with its run and no other: the flags that change the result, and the text."""
    free = RESUMABLE | ({"epochs"} if run.args.lr_schedule == "constant" else set())
    flags = {name: value for name, value in vars(run.args).items() if name not in free}
    return {"flags": flags, "text": run.corpus.meta["files"]}


def check_identity(run: Run, file: Path, saved: dict | None) -> None:
    """Raises CheckpointError, naming the flags that differ, if what `file` holds as its identity is not the run's."""
    own = identity(run)
    if saved is None:
        raise checkpoint.CheckpointError(f"{file}: not a checkpoint to go on from, or one of an older version")
    names = sorted(name for name in own["flags"] | saved["flags"] if own["flags"].get(name) != saved["flags"].get(name))
    if names:
        flags = ", ".join(spelt(name, saved["flags"].get(name)) for name in names)
        raise checkpoint.CheckpointError(
            f"{file}: of another run, by {checkpoint.CONFIG}: it has {flags}; put back its own"
        )
    if own["text"] != saved["text"]:
        raise checkpoint.CheckpointError(f"--data={run.args.data}: not the text that {run.folder} was trained on")
    if not (run.folder / "tokenizer.json").is_file():
        right = run.corpus.folder / "tokenizer.json"
        raise checkpoint.CheckpointError(f"{run.folder / 'tokenizer.json'}: missing; copy it from {right}")


def save(run: Run) -> None:
    """A checkpoint from which the run goes on to the same weights, from the middle of a batch's repeats too."""
    if not is_first():
        run.saved = run.update
        return
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "anchor": run.anchor if run.repeat else [],  # between two batches the anchor is W itself
        "alpha": dataclasses.asdict(run.alpha),
        "stream": run.stream.state(),
        "progress": {name: getattr(run, name) for name in PROGRESS},
        "seen": sorted(run.seen),
        "run": identity(run),
    }
    checkpoint.flush_metrics(run.folder)
    checkpoint.save(run.folder / checkpoint.NAME, state, previous=run.folder / checkpoint.PREVIOUS)
    checkpoint.drop_weights(run.folder, run.args.average_last, upto=run.saved)  # what --resume=previous does not need
    run.saved = run.update


def restore(run: Run) -> None:
    """Put the run where its checkpoint stands. Raises CheckpointError if it is damaged or of another run."""
    last, previous = run.folder / checkpoint.NAME, run.folder / checkpoint.PREVIOUS
    file = previous if run.args.resume == "previous" else last
    try:
        state = checkpoint.load(file)
    except checkpoint.CheckpointError as error:
        other = "; --resume=previous goes on from the one before it" if file == last and previous.exists() else ""
        raise checkpoint.CheckpointError(f"{error}{other}") from None
    check_identity(run, file, state.get("run"))
    checkpoint.fill(run.model, state["model"], file)
    run.optimizer.load_state_dict(state["optimizer"])
    for anchor, saved in zip(run.anchor, state["anchor"], strict=False):
        anchor.copy_(saved)
    run.alpha = bcp.Alpha(**state["alpha"])
    run.stream.load_state(state["stream"])
    run.seen = set(state["seen"])
    for name in PROGRESS:
        setattr(run, name, state["progress"][name])
    wait_for_all()  # until all have read what the first may now change
    if not is_first():
        return
    checkpoint.cut_metrics(run.folder, run.update)
    file.replace(last)  # only now, when all is well, does the one before take the place of the last
    run.saved = run.update
    if run.update < run.last_update:
        checkpoint.drop_weights_after(run.folder, run.update, run.args.eval_every)
        (run.folder / checkpoint.AVERAGE).unlink(missing_ok=True)
        config = checkpoint.read_config(run.folder)
        config["flags"]["epochs"] = run.args.epochs  # it may have been raised
        checkpoint.write_config(run.folder, config)


# --- Evaluation and report --------------------------------------------------------------------------------------------


def assess(run: Run) -> evaluate.Scores:
    """Validation loss and minimal pairs of the weights as they are."""
    return evaluate.assess(run.model, *run.validation, run.args.batch_size, run.corpus.pairs, run.corpus.eot)


class Journal:
    """What a run tells while it goes on: metrics.jsonl, a progress bar, and a line per evaluation."""

    def __init__(self, run: Run):
        self.run, self.file = run, run.folder / checkpoint.METRICS
        self.metrics = open(self.file, "ab", buffering=0)  # noqa: SIM115
        self.bar = tqdm(total=run.last_update, initial=run.update, unit="update", dynamic_ncols=True, mininterval=0.5)

    def record(self, **record) -> None:
        """One line of metrics.jsonl; NaN and the infinities, which JSON does not know, as null."""
        finite = {name: None if value in (math.inf, -math.inf) or value != value else value  # NaN differs from itself
                  for name, value in record.items()}  # fmt: skip
        line = json.dumps(finite).encode() + b"\n"
        try:
            while line:
                line = line[self.metrics.write(line) :]  # a disk that fills up takes a part of it
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from None

    def update(self, seconds: float, loss: float, alpha: float | None, **more) -> None:
        """One update: how long it took, and its numbers."""
        run = self.run
        run.seconds += seconds
        tokens = run.update * run.args.batch_size * run.args.block_size
        where = {"epoch": run.stream.epoch + 1, "batch": run.stream.batch, "repeat": run.repeat}
        self.record(update=run.update, **where, loss=loss, alpha=alpha, **more, tokens=tokens)
        shown_alpha = "" if alpha is None else f"alpha {alpha:.2f}, repeat {run.repeat}, "
        shown = f"loss {loss:.3f}, {shown_alpha}{tokens / run.seconds:,.0f} tokens/s"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def evaluation(self) -> evaluate.Scores:
        """Score the model, and keep its weights for --average-last."""
        run, scores = self.run, assess(self.run)
        pairs = {uid: score["accuracy"] for uid, score in scores.pairs.items()} if scores.pairs else None
        self.record(update=run.update, val_loss=scores.val_loss, toy=scores.toy, pairs=pairs)
        batches = f", {len(run.seen)} of {run.stream.n_batches} batches seen"
        self.bar.write(f"update {run.update:5}: {scores}{batches}")
        if run.args.average_last and run.update:
            checkpoint.save_weights(run.folder, run.update, run.model.state_dict())
        return scores

    def forgetting(self, L: float, autocast) -> None:
        """Note the loss of eight batches from all along the curriculum when trained on; score them again at times."""
        run, stream, found = self.run, self.run.stream, []
        if stream.batch in np.linspace(0, stream.n_batches - 1, 8).astype(int):
            run.left[stream.batch] = [run.update, L]
        if run.update % run.args.track_forgetting:
            return
        for batch, (update, left) in sorted(run.left.items()):
            if batch != stream.batch:
                x, y = stream.blocks(batch * stream.batch_size + np.arange(stream.batch_size))
                with torch.no_grad(), autocast:
                    now = run.model(torch.from_numpy(x).to(run.device), torch.from_numpy(y).to(run.device))
                found.append([batch, run.update - update, left, now.item()])
        self.record(update=run.update, forgetting=found)

    def close(self) -> None:
        self.bar.close()
        self.metrics.close()


class Silence:
    """The journal of all processes but the first."""

    def update(self, seconds: float, **numbers) -> None:
        pass

    def evaluation(self) -> evaluate.Scores:
        return evaluate.Scores(None, None)

    def forgetting(self, L: float, autocast) -> None:
        pass

    def close(self) -> None:
        pass


def report(run: Run, scores: evaluate.Scores) -> None:
    """The table at the end of a run."""
    args, stream = run.args, run.stream
    rows = [("validation loss", "-" if scores.val_loss is None else f"{scores.val_loss:.3f} nats per token")]
    if scores.pairs:
        rows += [("minimal pairs", f"{scores.toy:5.1f} %, mean of {len(scores.pairs)} paradigms")]
        rows += [(f"  {uid}", f"{score['accuracy']:5.1f} %") for uid, score in scores.pairs.items()]
    share = len(run.seen) * stream.batch_size * args.block_size / run.text_tokens
    rows += [("batches seen", f"{len(run.seen)} of {stream.n_batches}, in {stream.passes:.2f} passes")]
    rows += [("tokens seen", f"{100 * share:.1f} % of the training text")]
    if run.visits:
        numbers = f"mean {statistics.fmean(run.visits):.1f}, median {statistics.median(run.visits):g}"
        rows += [("repeats of a batch", f"{numbers}, largest {max(run.visits)}")]
    if args.mode == "bcp":
        rows += [("unconverged", f"{run.unconverged} of {len(run.visits)} batches, goal {args.goal:g} nats per token")]
    if kept := [entry for record in read_metrics(run) for entry in record.get("forgetting", [])]:
        lost = [now - left for _, _, left, now in kept]
        rows += [
            ("forgetting", f"{statistics.fmean(lost):+.2f} nats from a batch's last update, at worst {max(lost):+.2f}")
        ]
    rows += [("speed", f"{run.update * args.batch_size * args.block_size / run.seconds:,.0f} tokens per second")]
    rows += [("training time", f"{run.seconds:.0f} s for {run.update} updates")]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows))
    if 2 * run.unconverged > len(run.visits) and (better := suggested_goal(run)):
        print(f"\nover half of the batches did not converge: --goal={args.goal:g} is too low here; a little above what "
              f"--mode=random reaches is good, and by this run's losses try --goal={better}")  # fmt: skip


def read_metrics(run: Run) -> list[dict]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (run.folder / checkpoint.METRICS).read_text().splitlines()]


def suggested_goal(run: Run) -> float | None:
    """The goal with which half of the batches would have converged, nats per token; None without recorded losses.

    With threshold 1 a batch converges when the mean of L over its repeats is down to the goal: the median of that mean.
    """
    losses = {}
    for record in read_metrics(run):
        if record.get("loss") is not None:
            losses.setdefault((record["epoch"], record["batch"]), []).append(record["loss"])
    return math.ceil(10 * statistics.median(map(statistics.fmean, losses.values()))) / 10 if losses else None


# --- The loop ---------------------------------------------------------------------------------------------------------


def lr_factor(update: int, budget: int, warmup: int, schedule: str) -> float:
    """The learning rate of an update (counted from 0) as a share of its peak."""
    if update < warmup:
        return (update + 1) / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, budget - warmup)))
    if schedule == "wsd":
        return min(1.0, (budget - update) / max(1.0, 0.2 * budget))
    return 1.0


def next_batch(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """X_t: inputs and targets on the device, (B, T), of several processes each one's share of the rows."""
    if run.stream.batch is not None:
        run.seen.add(run.stream.batch)
    x, y = run.stream.blocks()
    return copy_to_device(own_rows(x), run.device), copy_to_device(own_rows(y), run.device)


def loss_and_gradient(run: Run, forward, autocast, x: torch.Tensor, y: torch.Tensor, stop: bool) -> list[float]:
    """L, the mean cross-entropy of the batch x, y (B, T) in nats per token; its gradient is left in the weights.

    The batch is worked through in equal parts. L is on its way to the host while the last backward pass runs. With it
    goes a second number, above 0 if this process or another one is to stop after this update.
    """
    loss, blocks, parts = torch.zeros((), device=x.device), [], run.args.grad_accum
    for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        with autocast:
            if run.args.mode == "lfr":  # which follows the loss of every block
                blocks.append(forward(part_x, part_y, reduction="none").mean(dim=1))  # (B / parts)
                part = blocks[-1].mean() / parts
            else:
                part = forward(part_x, part_y) / parts
        loss += part.detach()
        read = copy_to_host(mean_over_processes(torch.stack((loss, torch.full_like(loss, stop)))))
        part.backward()
    if blocks:
        run.stream.track(torch.cat(blocks).detach().cpu().numpy())
    return read()


def add_replay(run: Run, forward, autocast, W: list[torch.Tensor]) -> None:
    """From the gradient g in the weights to (1 - f) g + f times that on replayed blocks, which is clipped by itself."""
    rows = run.stream.replay(n_replayed(run.args), run.args.replay_power, run.update)
    x, y = (copy_to_device(own_rows(part), run.device) for part in run.stream.blocks(rows))
    g = [w.grad for w in W]
    for w in W:
        w.grad = None
    loss_and_gradient(run, forward, autocast, x, y, stop=False)
    bcp.clip_and_scale([w.grad for w in W], run.args.clip, run.args.replay)
    torch._foreach_add_([w.grad for w in W], g, alpha=1 - run.args.replay)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, alpha: float) -> None:
    """The learning rate of the next step, times alpha. Weight decay, which AdamW multiplies by it, stays."""
    alpha = max(alpha, 1e-8)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * alpha, group["decay"] / alpha


class Watch:
    """Measures how far weights move between two looks."""

    def __init__(self, W: list[torch.Tensor]):
        self.before = [w.detach().clone() for w in W]

    def moved(self, W: list[torch.Tensor]) -> float:
        """|W - W at the last look|_2."""
        moved = bcp.distance(W, self.before)
        self.before = [w.detach().clone() for w in W]
        return moved


def layers_of(model: Transformer) -> list[str]:
    """The layer that each of the model's weight tensors belongs to: embed_tokens, 0, 1, ..., norm."""
    return [re.fullmatch(r"model\.(?:layers\.)?(\w+)\..*", name)[1] for name, _ in model.named_parameters()]


def guard(optimizer: torch.optim.Optimizer, L: float, norm: torch.Tensor) -> Callable[[], bool]:
    """Have the next optimizer.step() change nothing if L or the norm of the gradient is not finite. Was it applied?

    The fused AdamW looks at `found_inf` on the device: a GPU need not wait for the host, which learns of it while the
    step runs.
    """
    finite = (norm + L).isfinite()
    optimizer.found_inf = 1.0 - finite.float()
    return copy_to_host(finite)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """A list that the signals asking a run to end are put into, so that it can save first."""
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    old = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def train(run: Run, journal: Journal, signals: list[int]) -> evaluate.Scores | None:
    """Train until the budget is spent, or until a signal arrives. Returns the last scores, or None after a signal.

    The regimes differ by which batch comes next (run.stream, made in `start`) and by when a batch is done (step 4).
    Raises FloatingPointError after --max-bad-updates in a row.
    """
    args, stream, alpha, optimizer, W = run.args, run.stream, run.alpha, run.optimizer, list(run.model.parameters())
    is_bcp = args.mode == "bcp"
    times = (args.repeats or args.epochs) if args.mode == "curriculum-repeat" else 1
    compiled = args.compile if args.compile is not None else run.device.type == "cuda"
    forward = DistributedDataParallel(run.model) if n_processes() > 1 else run.model
    forward = torch.compile(forward) if compiled else forward
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    scores, x, y, stop = None, None, None, False
    if run.update == 0:
        journal.evaluation()

    while run.update < run.last_update and not stop:
        began = time.perf_counter()
        factor = lr_factor(run.update, run.budget, args.warmup, args.lr_schedule)
        if x is None or run.repeat == 0:
            x, y = next_batch(run)
        if is_bcp and run.repeat == 0:
            bcp.drop_anchor(run.anchor, W)
            alpha.restart()

        # Step 1: the loss of W on the batch.
        L, stop = loss_and_gradient(run, forward, autocast, x, y, stop=bool(signals))

        # Step 2: alpha' = alpha + eta (L - L_goal), then W' = AdamW(alpha' L). Outside bcp alpha stays 1.
        before = alpha.alpha, alpha.falls
        alpha_raw = alpha.update(L) if is_bcp else None
        strength = {"loss": 1.0, "lr": 1.0} | {args.alpha_on: alpha.alpha}  # what alpha acts on; the poster: the loss
        norm = bcp.clip_and_scale([w.grad for w in W], args.clip, strength["loss"])
        if args.replay:
            add_replay(run, forward, autocast, W)
        set_rate(optimizer, args.lr * factor, strength["lr"])
        watch = Watch(W) if (run.update + 1) % args.norms_every == 0 else None
        applied = guard(optimizer, L, norm)
        optimizer.step()
        optimizer.zero_grad()
        notes = {"step_norm": watch and watch.moved(W), "pull_norm": None, "anchor_dist": None}

        # Step 3: pull W' back toward the anchor W_{t,0}, the less the lower the learning rate.
        if not applied():  # W and AdamW are as they were, and so is alpha
            alpha_raw, (alpha.alpha, alpha.falls) = None, before
            notes["skipped"] = f"loss {L}, norm of the gradient {norm.item()}"
        elif is_bcp:
            bcp.pull_back(W, run.anchor, args.C * factor, args.p, args.prox)
            notes |= {"pull_norm": watch.moved(W), **bcp.drift(W, run.anchor, layers_of(run.model))} if watch else {}

        run.update, run.repeat = run.update + 1, run.repeat + 1
        run.bad_updates = run.bad_updates + 1 if "skipped" in notes else 0
        journal.update(time.perf_counter() - began, loss=L, alpha=alpha_raw, lr=args.lr * factor, **notes)
        if run.bad_updates >= args.max_bad_updates:
            raise FloatingPointError(f"{run.bad_updates} updates in a row were skipped, the last (update {run.update}, "
                                     f"batch {stream.batch}) for its {notes['skipped']}; try a lower --lr")  # fmt: skip

        if args.track_forgetting:
            journal.forgetting(L, autocast)

        # Step 4: has the batch been learnt? Then the next one, else the same again.
        if alpha.done if is_bcp else run.repeat >= times:
            finish_batch(run)
        if run.update % args.eval_every == 0 or run.update == run.last_update:
            scores = journal.evaluation()
        if run.update % args.save_every == 0 or run.update == run.last_update:
            save(run)
    if not stop:
        return scores
    save(run)
    return None


def finish_batch(run: Run) -> None:
    """Write down how the current batch went, and go to the next one."""
    run.visits.append(run.repeat)
    run.unconverged += run.args.mode == "bcp" and not run.alpha.converged
    run.repeat = 0
    run.stream.advance()


def main(args: argparse.Namespace) -> int:
    """The whole program; returns its exit status."""
    with contextlib.ExitStack() as held:
        try:
            run = start(args)
            resuming = bool(args.resume and any(run.folder.glob("checkpoint*.pt")))
            wait_for_all()  # until all have seen the folder as it is now
            if is_first():
                make_folder(run)
                held.enter_context(checkpoint.lock(run.folder))
            if resuming:
                restore(run)
            elif is_first():
                open_folder(run)
        except ValueError as error:  # a wrong corpus, size, device or checkpoint; the message is one line
            get_parser().error(str(error))
        return go(run, resuming)


def go(run: Run, resuming: bool) -> int:
    """Train the run, or what is left of it; returns the program's exit status."""
    args, corpus = run.args, run.corpus
    if run.update >= run.last_update:
        print(f"{run.folder} is finished after {run.update} updates; score it with: python evaluate.py {run.folder}")
        if args.average_last and is_first() and not (run.folder / checkpoint.AVERAGE).exists():  # it ended just before
            average(run)
        return 0
    sizes = f"{run.stream.n_batches} batches of {args.batch_size} x {args.block_size} tokens"
    small = " (the default without a GPU)" if args.preset == "tiny" and run.device.type != "cuda" else ""
    print(f"run     {run.folder}" + (f", going on after update {run.update}" if resuming else ""))
    print(f"model   {args.preset}{small}: {count_parameters(run.model):,} parameters, {run.device}, {args.dtype}")
    print(f"text    {corpus.meta['corpus']}: vocabulary {corpus.vocab_size:,}, {sizes}")
    print(f"budget  {run.budget} updates" + (f", goal {args.goal:g} nats per token" if args.mode == "bcp" else ""))
    to_go_on = f"to go on: python train.py --resume --out={run.folder}"
    lost = (RuntimeError,) if n_processes() > 1 else ()  # what torch raises when another process has died
    with caught_signals() as signals:  # torchrun sends one when another process has died: the message comes first
        try:
            with contextlib.closing(Journal(run) if is_first() else Silence()) as journal:
                scores = train(run, journal, signals)
        except (OSError, FloatingPointError, *lost) as error:  # a full disk, say; what was saved before is whole
            saved = f"; saved at update {run.saved}, {to_go_on}" if run.saved else "; nothing was saved yet"
            known = isinstance(error, OSError | FloatingPointError)
            trouble = error if known else f"another process of this run has ended ({data.one_line(error)})"
            print(f"train.py: {trouble}{saved}", file=sys.stderr)
            return 1
    if scores is None:
        number = signals[0] if signals else signal.SIGTERM  # another process got it
        print(f"\n{signal.Signals(number).name}: saved at update {run.update}; {to_go_on}")
        return 128 + number
    if not is_first():
        return 0
    report(run, scores)
    if args.average_last:
        average(run)
    if args.plot:
        from tools import plot

        plot.draw([run.folder], run.folder / "figures")
    print(f"\nthe run is in {run.folder}; score it with: python evaluate.py {run.folder}")
    return 0


def average(run: Run) -> None:
    """Write and score the mean of the weights at the last evaluations."""
    run.model.load_state_dict(checkpoint.average_weights(run.folder, run.args.average_last))
    scores = assess(run)
    record = {"update": run.update, "average_val_loss": scores.val_loss, "average_toy": scores.toy}
    with open(run.folder / checkpoint.METRICS, "a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"\nmean of the weights at the last {run.args.average_last} evaluations: {scores}")


if __name__ == "__main__":
    try:
        status = main(ARGS)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        sys.exit(status)
    except (OSError, checkpoint.CheckpointError) as error:  # the machine, or kept weights that are damaged
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:  # while the text is being prepared; later on it is caught, and the run is saved
        sys.exit(130)
