"""The flags of train.py, each declared once, with its help and its check: python train.py --help prints this list.

Nothing here imports torch, so that a wrong flag is answered at once.
"""

import argparse
import math
import sys
from pathlib import Path

import terminal
from curriculum import DIFFICULTY

# What a preset of model.py is trained with unless a flag says otherwise.
PRESET_DEFAULTS = {
    "372m": {"block_size": 512, "batch_size": 128, "lr": 5e-4, "warmup": 0.05},
    "115m": {"block_size": 512, "batch_size": 128, "lr": 5e-4, "warmup": 0.05},
    "117m": {"block_size": 512, "batch_size": 64, "lr": 6e-4, "warmup": 200},
    "small": {"block_size": 256, "batch_size": 32, "lr": 1e-3, "warmup": 100},
    "tiny": {"block_size": 64, "batch_size": 32, "lr": 2e-3, "warmup": 20},
    "nano": {"block_size": 16, "batch_size": 16, "lr": 1e-2, "warmup": 3},
}
# The default C for each p, measured (results/LOG.md): a share of the peak learning rate, about what AdamW moves
# a weight by, and a share of the distance.
DEFAULT_C = {1: 0.15, 2: 0.1}
KEEP = ("evaluations", "babylm", "words", "shares")
# Words, in millions, after which the challenge wants checkpoints, and the paper averaged them (section 3.3).
MILLION, MILESTONES = 10**6, (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))
MODES = ("random", "curriculum", "curriculum-repeat", "bcp", "lfr")
SIZES = ("n_layer", "n_embd", "n_head", "n_kv_head", "n_mlp")
# What --recipe sets, unless a flag says otherwise; a function where it depends on the mode or on p.
RECIPES = {
    "paper": {  # tables 7 and 8; batches of 128 x 512 come with the presets 115m and 372m
        "goal": 0.693, "eta": 0.1, "max_repeats": 10, "patience": 3, "pull": "prox",
        "C": lambda args: {1: 1e-6, 2: 1.0}[args.p], "weight_decay": lambda args: 0.0 if args.mode == "bcp" else 0.01,
        "beta1": 0.9, "beta2": 0.999, "lr": 5e-4, "lr_schedule": "cosine", "lr_end": 0.1, "warmup": 0.05,
        "keep_weights": "shares",
    },
    # The poster's form of the method, which the experiments E1 to E5 were made with.
    "poster": {"pull": "gradient", "patience": 2, "alpha_cap": 1e9, "moments": "carried", "max_repeats": 100,
               "C_schedule": "lr"},
}  # fmt: skip
# E3's winner: the poster's form in random order, each batch until its loss is a little below what it was at first.
RECIPES["within-reach"] = RECIPES["poster"] | {
    "p": 2, "order": "random", "leave_at_goal": True, "patience": 1, "goal_rel": 0.98
}  # fmt: skip
# Flags which may differ when a run is resumed: none of them changes what is computed, but for rounding
# (device, compile, grad_accum). Nor do names of files: a checkpoint knows the text, and its order, by their digests.
FREE = {"resume", "overwrite", "out", "max_updates", "save_every", "grad_accum", "device", "compile", "cache"}
FILES = {"data", "aoa_file"}


class Help(argparse.RawDescriptionHelpFormatter):
    """Says every default behind the help's text; where it follows from other flags, the text says how."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = "(default" in action.help or action.dest == "help"
        default = "off" if action.default is False else "%(default)s"
        return action.help if told else f"{action.help} (default: {default})"


class Parser(argparse.ArgumentParser):
    """A parser that prepares the terminal, too, when it reads the real command line."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        if args is None:
            terminal.prepare(self.prog)
        return super().parse_args(args, namespace)


def number(kind: type, least: float, most: float = math.inf, above: bool = False):
    """A parser of flags: a finite number of that kind, at least `least` (more than it with `above`), at most `most`."""
    wanted = {int: "a whole number", float: "a number"}[kind] + (" above " if above else " of at least ") + f"{least:g}"
    wanted += f" and at most {most:g}" if most < math.inf else ""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):  # the latter of hundreds of digits
            finite = False
        if not (finite and least <= value <= most) or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text!r}: must be {wanted}")
        return value

    return parse


def device_name(text: str) -> str:
    """A parser of flags: the name of a device, whether or not it is there."""
    kind, _, index = text.partition(":")
    if text not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and index.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto, cpu, cuda, cuda:N or mps")
    return text


def new_parser(program: str, description: str | None = None) -> argparse.ArgumentParser:
    """A parser without flags. Without a usage text an error is one line."""
    return Parser(program, argparse.SUPPRESS, description, formatter_class=Help, allow_abbrev=False)


def get_parser(description: str | None = None) -> argparse.ArgumentParser:
    """All flags of train.py."""
    parser = new_parser("train.py", description)
    count, share, positive = number(int, 1), number(float, 0, 1), number(float, 0, above=True)

    # fmt: off
    add = parser.add_argument_group("what most runs need").add_argument
    add("--mode", choices=MODES, default="bcp",
        help="random: each batch once, in a new order in every pass; curriculum: each batch once, easy to hard; "
        "curriculum-repeat: each batch several times in a row; bcp: each until alpha has converged; lfr: all, then the "
        "hardest blocks, then all, in cycles")
    add("--p", type=int, choices=(1, 2), default=1, help="bcp: the norm of the pull-back to the anchor")
    add("--data", default="toy", help="toy (built in), a text file, a folder searched for *.txt and *.train (.gz too), "
        "a folder that data.py prepared, babylm-10m or babylm-100m")
    add("--goal", type=positive, help="bcp: the loss at which a batch counts as learnt, nats per token; good is a "
        "little above what --mode=random reaches (default: half a nat above a bigram model's "
        "loss on unseen text)")
    add("--epochs", type=count, default=10, help="the budget in every mode: so many times the number of batches "
        "updates; --resume may raise it if --lr-schedule=constant")
    add("--preset", choices=PRESET_DEFAULTS, help="sizes of model and batch (default: tiny on a CPU, and for less "
        "than a million words; on a GPU with bfloat16 117m from five million words on; else small)")
    add("--out", type=Path, help="run folder (default: a fresh numbered one, such as out/bcp-p1-3)")
    add("--resume", action="store_true", help="go on with the run in --out, with its flags, from its last checkpoint")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--recipe", choices=RECIPES, help="settings to start from, each of which a flag overrides: the paper's; the "
        "poster's form of the method; or a goal within every batch's reach, in random order (default: none)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of weights and shuffling")

    add = parser.add_argument_group("method").add_argument
    add("--order", choices=("curriculum", "random", "shuffled-once", "stages", "shift"), help="of the batches: easy to "
        "hard; shuffled lines, and the batches anew in every pass; one shuffled order for all passes; from stage to "
        "stage (sub-folders such as 1-short), each easy to hard; or one stage after the other, each shuffled (without "
        "stages the easier half, then the harder) (default: random with --mode=random and lfr, else curriculum)")
    add("--difficulty", choices=DIFFICULTY, default="surprisal", help="; ".join(
        f"{name}: {label}" for name, (label, _) in DIFFICULTY.items()))
    add("--split", choices=("lines", "sentences"), default="lines", help="what is put in order: the lines of the text, "
        "or, where they are whole paragraphs, their sentences (by the rule in data.py)")
    add("--aoa-file", metavar="FILE", help="composite: ages of acquisition, a CSV or tab-separated file with columns "
        "Word and Rating.Mean (Kuperman et al. 2012) or word and rating (default: none, its two terms are left out)")
    add("--repeats", type=count, help="curriculum-repeat: times in a row (default: --epochs)")
    add("--C", type=number(float, 0), help="bcp: strength of the pull-back at the peak learning rate: with p=1 weight "
        f"per update (default: {DEFAULT_C[1]:g} of --lr), with p=2 share of the distance (default: {DEFAULT_C[2]:g})")
    add("--C-schedule", choices=("constant", "lr"), default="constant", help="bcp: C is constant, or follows the "
        "learning rate")
    add("--pull", choices=("prox", "gradient"), default="prox", help="bcp: the pull-back is the proximal step, which "
        "never overshoots the anchor, or the poster's gradient step")
    add("--moments", choices=("fresh", "carried"), help="AdamW's moments start at zero with every batch, or are "
        "carried on (default: fresh with --mode=bcp, else carried)")
    add("--eta", type=positive, default=0.1, help="bcp: learning rate of alpha, per nat")
    add("--alpha-cap", type=positive, default=1.0, metavar="D", help="bcp: alpha grows by no more in one update")
    add("--threshold", type=positive, default=1.0, help="bcp: alpha has converged below it")
    add("--patience", type=count, default=3, help="bcp: ... and after this many updates in a row in "
        "which it did not grow")
    add("--max-repeats", type=count, default=10, help="bcp: leave a batch after so many repeats (I_max)")

    add = parser.add_argument_group("remedies and controls", "none of them is the paper's").add_argument
    add("--leave-at-goal", action="store_true", help="bcp: leave a batch when its loss is below the goal, --patience "
        "times in a row, whatever alpha is: no threshold")
    add("--idle", action="store_true", help="bcp: a visit whose first loss is at the goal changes nothing, and ends")
    add("--alpha-on", choices=("loss", "lr", "none"), default="loss",
        help="bcp: alpha scales the loss; the learning rate, where AdamW feels it; or nothing, and only decides when a "
        "batch is left")
    add("--alpha-leak", type=share, default=0.0, metavar="X",
        help="bcp: alpha goes back toward 1 by this share at every update")
    add("--goal-rel", type=number(float, 0), default=0.0, metavar="R",
        help="bcp: the goal of a batch is at least this share of its own first loss")
    add("--replay", type=number(float, 0, 0.9), default=0.0, metavar="F",
        help="share of a batch's rows drawn from batches met before; alpha looks at the others")
    add("--replay-power", type=number(float, 0), default=1.0, metavar="POWER",
        help="a batch met k batches ago is drawn in proportion to k to the minus this power")
    add("--stream", action="store_true", help="the text goes by once: a batch that was left does not come back; the "
        "rest of the budget goes to batches drawn from the buffer, or without one to the last batch")
    add("--buffer-tokens", type=number(int, 0), metavar="N", help="tokens in the buffer that --replay draws from, a "
        "uniform sample of the text met so far (default: all of that; with --stream 0)")
    add("--data-share", type=number(float, 0, 1, above=True), default=1.0, metavar="S",
        help="only the easiest lines, up to this share of the text, and with --order=shift of what comes before the "
        "shift; the budget stays that of the whole")
    add("--track-forgetting", type=count, nargs="?", const=60, metavar="N",
        help="every N updates (without N: 60) score some batches met before again (default: off)")

    add = parser.add_argument_group("model", "where the preset's size is not wanted").add_argument
    add("--vocab-size", type=number(int, 257, 65536), help="tokens, end-of-text included (default: the preset's)")
    add("--n-layer", type=count, help="transformer blocks (default: the preset's)")
    add("--n-embd", type=count, help="width, numbers per token (default: the preset's)")
    add("--n-head", type=count, help="query heads (default: the preset's)")
    add("--n-kv-head", type=count, help="key/value heads (default: the preset's)")
    add("--n-mlp", type=count, help="hidden width of the MLP (default: the preset's)")
    add("--block-size", type=count, help="T, tokens per sequence (default: the preset's)")

    add = parser.add_argument_group("optimisation").add_argument
    add("--batch-size", type=count, help="sequences per update (default: the preset's)")
    add("--grad-accum", type=count, default=1, help="parts that a batch is processed in, to save memory")
    add("--lr", type=positive, help="peak learning rate of AdamW (default: the preset's)")
    add("--lr-schedule", choices=("constant", "cosine", "wsd"), default="constant",
        help="after the warm-up; cosine falls, and wsd in its last fifth")
    add("--lr-end", type=share, default=0.0, metavar="S", help="cosine and wsd fall to this share of the peak")
    add("--warmup", type=number(float, 0), help="updates of linear warm-up; below 1 a share of the budget (default: "
        "the preset's, at most a tenth of the budget)")
    add("--weight-decay", type=number(float, 0), default=0.1, help="on matrices only")
    add("--beta1", type=number(float, 0, 0.9999), default=0.9, help="of AdamW")
    add("--beta2", type=number(float, 0, 0.99999), default=0.95, help="of AdamW")
    add("--clip", type=positive, default=1.0, help="largest norm of the gradient of L, before alpha")

    add = parser.add_argument_group("run").add_argument
    add("--max-updates", type=count, help="stop after so many updates; schedules keep the whole budget in view "
        "(default: the budget)")
    add("--eval-every", type=count, help="updates between evaluations (default: an eighth of the budget)")
    add("--keep-weights", "--checkpoints", choices=KEEP, help="keep weights for tools.average and tools.export: of "
        "every evaluation; at the challenge's numbers of words (1M to 9M, 10M to 100M, 200M to 1000M), babylm with the "
        "last one of a track at the end; or at the same 28 shares of the budget (default: none)")
    add("--save-every", type=count, help="updates between checkpoints (default: five minutes of training)")
    add("--norms-every", type=count, default=10, help="updates between two measurements of norms")
    add("--cache", type=Path, default=Path("data/cache"), help="where prepared text is kept")
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of matrix products; weights stay "
        "float32; auto: bfloat16 on a GPU that has it, float32 elsewhere, so on a T4; a GPU that has TF32 takes it for "
        "float32")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU, if Triton and a "
        "C compiler are there)")
    # fmt: on
    return parser


def get_args(argv: list[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The flags, checked as far as that is possible without looking at files. Ends the program on a wrong one."""
    parser = get_parser(description)
    args = parser.parse_args(argv)
    if args.recipe:
        recipe = {name: value(args) if callable(value) else value for name, value in RECIPES[args.recipe].items()}
        parser.set_defaults(**recipe)
        args = parser.parse_args(argv)
    if args.resume:
        args = resumed(parser, args, argv)
    elif args.out == Path():
        parser.error("argument --out: is empty, or the working folder itself; give another")
    if args.mode == "lfr" and args.replay:
        parser.error("argument --replay: not with --mode=lfr, whose batches are drawn anew; give one of the two")
    if args.mode == "lfr" and args.stream:
        parser.error("argument --stream: not with --mode=lfr, which goes through the text again; give one of the two")
    if args.stream and args.replay and not args.buffer_tokens:
        parser.error("argument --stream: --replay needs a buffer then; add its size, such as --buffer-tokens=16384")
    if args.aoa_file and args.difficulty != "composite":
        parser.error("argument --aoa-file: nothing else reads it; add --difficulty=composite, or leave it out")
    for action in parser._actions if argv is None and not args.resume else ():
        of = action.help.partition(":")[0]  # the mode that reads the flag, or something else
        if of in MODES and of != args.mode and action.dest != "mode" and getattr(args, action.dest) != action.default:
            print(f"train.py: {action.option_strings[0]} is read with --mode={of} only", file=sys.stderr)
    return args


def resumed(parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None) -> argparse.Namespace:
    """The flags of the run in --out, and on top of them those of the command line that do not change its result."""
    if args.out is None:
        parser.error("argument --resume: needs --out=FOLDER, the run to go on with")
    if args.overwrite:
        parser.error("argument --resume: goes on with a run, --overwrite replaces it; give one of the two")
    import checkpoint

    try:
        saved = checkpoint.read_config(args.out)["flags"]
    except ValueError as error:
        parser.error(f"argument --resume: {error}")
    own = {name: value for name, value in saved.items() if name in vars(args) and name not in ("resume", "overwrite")}
    own = {name: value if value in (None, True, False) else str(value) for name, value in own.items() if name != "out"}
    parser.set_defaults(**own)  # what is a string is parsed, and so checked
    args = parser.parse_args(argv)
    changed = different(args, saved)
    if changed:
        parser.error(f"argument --resume: the run was started with {changed}; leave that as it was, or start a new run")
    return args


def of_result(args: argparse.Namespace) -> dict:
    """The flags that a run's result depends on."""
    return {name: value for name, value in vars(args).items() if name not in FREE | FILES}


def different(args: argparse.Namespace, saved: dict) -> str:
    """The flags of a saved run that differ from these and change the result, as one would type them; "" for none.

    A flag that the saved run did not know yet had what is the default. More epochs are no difference where the
    learning rate does not depend on them.
    """
    own, defaults = of_result(args), vars(get_parser().parse_args([]))
    saved = {name: value for name, value in saved.items() if name not in FREE | FILES}
    names = [n for n in own if own[n] != saved.get(n, own[n] if defaults[n] is None else defaults[n])]
    names += [name for name in saved if name not in own and name not in defaults]
    if args.lr_schedule == "constant" and args.epochs > saved.get("epochs", args.epochs):
        names.remove("epochs")
    return ", ".join(spelt(name, saved.get(name, defaults.get(name))) for name in names)


def spelt(name: str, value: object) -> str:
    """A flag as one would type it: --seed=0, --stream, "no --goal"."""
    flag = "--" + name.replace("_", "-")
    return f"no {flag}" if value is None or value is False else flag if value is True else f"{flag}={value}"


def fill_in(args: argparse.Namespace, preset: str = "tiny") -> None:
    """What was left open and follows from the preset (by default the one given) and the mode, in place."""
    args.preset = args.preset or preset
    for name, value in PRESET_DEFAULTS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.order = args.order or ("random" if args.mode in ("random", "lfr") else "curriculum")
    args.moments = args.moments or ("fresh" if args.mode == "bcp" else "carried")
    if args.C is None:
        args.C = DEFAULT_C[args.p] * (args.lr if args.p == 1 else 1.0)
    if args.mode == "curriculum-repeat":
        args.repeats = args.repeats or args.epochs
    if args.stream:
        args.buffer_tokens = args.buffer_tokens or 0


def milestones(args: argparse.Namespace, words_per_token: float) -> dict[int, int]:
    """The first update that has read so many million words, repeats and replayed rows included."""
    words = args.batch_size * args.block_size * words_per_token  # of an update
    return {million: math.ceil(million * MILLION / words) for million in MILESTONES}


def updates_to_keep(args: argparse.Namespace, budget: int, end: int, words_per_token: float) -> set[int]:
    """The updates after which --keep-weights keeps the weights.

    Ten passes end before 100 (1000) million words, as text is held out: babylm keeps an end at most a tenth before.
    """
    if args.keep_weights == "evaluations":
        return {*range(args.eval_every, end + 1, args.eval_every), end}
    if args.keep_weights in ("babylm", "words"):
        at = milestones(args, words_per_token)
        short = args.keep_weights == "babylm" and any(0.9 * at[limit] <= budget < at[limit] for limit in (100, 1000))
        return {*at.values()} | ({budget} if short else set())
    return {math.ceil(million / MILESTONES[-1] * budget) for million in MILESTONES} if args.keep_weights else set()


def n_replayed(args: argparse.Namespace) -> int:
    """How many of a batch's rows are replayed ones."""
    return min(round(args.replay * args.batch_size), args.batch_size - 1)


def less_memory(args: argparse.Namespace) -> str:
    """What to type when memory has run out."""
    rows = math.gcd(args.batch_size - n_replayed(args), n_replayed(args))
    parts = next((n for n in range(args.grad_accum + 1, rows + 1) if rows % n == 0), None)
    return f"try --grad-accum={parts}" if parts else "try a smaller --preset or --block-size"


def check_rows(args: argparse.Namespace, processes: int) -> None:
    """Raises ValueError if a batch's rows do not share out among parts and processes."""
    new, old = args.batch_size - n_replayed(args), n_replayed(args)
    if args.replay and not old:
        raise ValueError(f"--replay={args.replay}: is no row of --batch-size={args.batch_size}; give a larger share")
    if any(rows % (args.grad_accum * processes) for rows in (new, old)):
        what = f"--batch-size={args.batch_size}" + (", its new rows and its replayed ones" if args.replay else "")
        share = f" in each of {processes} processes" if processes > 1 else ""
        raise ValueError(f"--grad-accum={args.grad_accum}: must divide {what}{share}")
    if args.mode == "lfr" and processes > 1:
        raise ValueError("--mode=lfr: follows every block's loss in one process; start it without torchrun")
