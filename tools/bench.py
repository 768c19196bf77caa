"""How fast training is, and how far from its goals: python -m tools.bench [--quick]

Every row is measured on the machine it runs on: a GPU with the 117m preset in bfloat16, compiled, or else a CPU with
the tiny preset in float32. What is compared runs side by side: each way to train sits in a process of its own, and
they take turns, a few updates each (A B C A B C ...); a ratio is the median over the rounds of the ratios within a
round. `low` and `high` are quartiles. Random tokens, no validation, and none of train.py's journal.

Writes results/bench-<device>.json, a list of {name, value, unit, goal, met, n, low, high}; value and met are null in a
row that cannot be measured here, or that --quick leaves out: what takes minutes (compiling on a CPU, 100 M words).
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import curriculum
import flags
import machine
import train
from journal import Journal
from model import PRESETS, Config, Transformer, count_parameters

ROOT = Path(__file__).resolve().parents[1]
MATRIX = 8192  # of the square product that gives the machine's matrix rate


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    preset: str
    batch_size: int
    block_size: int
    device: str
    compiled: bool

    @property
    def tokens(self) -> int:
        """Tokens of an update."""
        return self.batch_size * self.block_size

    def flops(self, config: Config) -> float:
        """Model FLOPs of an update: per token 6 x parameters + 6 x layers x width x block (causal attention)."""
        with torch.device("meta"):
            weights = count_parameters(Transformer(config))
        return self.tokens * 6 * (weights + config.n_layer * config.n_embd * self.block_size)


# --- Ways to train, each an endless iterator: one step, one update ----------------------------------------------------


def ours(mode: str, s: Setting) -> Iterator[None]:
    """The loop of train.py without its journal. mode: random, curriculum-repeat, bcp-1 or bcp-2 (the p).

    Each batch of bcp converges at its third repeat, the least there is: anchors are dropped as often as can be.
    """
    name, _, p = mode.partition("-") if mode.startswith("bcp") else (mode, "", "1")
    words = [f"--mode={name}", f"--p={p}", f"--C={1e-5 if p == '1' else 0.1}", "--eta=1e-3", "--goal=100",
             f"--preset={s.preset}", f"--batch-size={s.batch_size}", f"--block-size={s.block_size}", "--lr=1e-4",
             "--warmup=0", "--eval-every=1000", f"--device={s.device}"]  # fmt: skip
    args, device = flags.get_args(words), torch.device(s.device)
    flags.fill_in(args)
    machine.reuse_memory()
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(PRESETS[s.preset].vocab_size, size=32 * s.tokens + 1).astype(np.uint16)
    model = Transformer(PRESETS[s.preset]).to(device)
    run = train.Run(
        args=args,
        folder=None,
        device=device,
        corpus=None,
        validation=None,
        text={},
        text_tokens=len(tokens),
        budget=sys.maxsize,
        end=0,
        kept=set(),
        forward=machine.for_all_processes(model, s.compiled),
        autocast=torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        model=model,
        optimizer=train.adamw(model, args),
        anchor=[w.detach().clone() for w in model.parameters()] if name == "bcp" else [],
        alpha=train.make_alpha(args),
        stream=curriculum.Stream(tokens, s.block_size, s.batch_size, reshuffle=args.order == "random"),
    )
    journal = Journal(run, None)
    while True:
        run.end = run.update + 1
        train.train(run, journal, [])
        yield


def transformers_loop(s: Setting) -> Iterator[None]:
    """A plain loop around transformers' Qwen2ForCausalLM: same sizes, dtype and optimizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    device, c = torch.device(s.device), PRESETS[s.preset]
    config = Qwen2Config(
        vocab_size=c.vocab_size,
        hidden_size=c.n_embd,
        intermediate_size=c.n_mlp,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        max_position_embeddings=s.block_size,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = Qwen2ForCausalLM(config).to(device)
    forward = torch.compile(model) if s.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    while True:
        x = torch.randint(c.vocab_size, (s.batch_size, s.block_size)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(input_ids=x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        yield


def products(s: Setting) -> Iterator[None]:
    """One product of two random square matrices in bfloat16."""
    a, b = (torch.randn(MATRIX, MATRIX, device=s.device, dtype=torch.bfloat16) for _ in range(2))
    while True:
        torch.mm(a, b)
        yield


# --- Each in a process of its own -------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects()
                if issubclass(type(t), torch.Tensor) and t.device.type != "meta"}  # fmt: skip
    return sum(storages.values())


def idle_share(step: Callable[[], None], updates: int) -> float:
    """The share of the time in which the GPU does nothing, in a profile of so many updates."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(updates):
            step()
        torch.cuda.synchronize()
    on_gpu = [e.time_range for e in profile.events()  # kernels and copies, not the spans that annotate them
              if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]  # fmt: skip
    on_gpu.sort(key=lambda span: span.start)
    first, end, idle = on_gpu[0].start, on_gpu[0].end, 0.0
    for span in on_gpu:
        idle += max(0.0, span.start - end)
        end = max(end, span.end)
    return idle / (end - first)


def serve(pipe, kind: str, s: Setting) -> None:
    """Answer requests: a number of updates by the seconds of one of them, "bytes", "peak" or "idle" by a number."""
    try:
        makers = {"transformers": transformers_loop, "products": products}
        steps = makers[kind](s) if kind in makers else ours(kind, s)
        for request in iter(pipe.recv, None):
            if request == "bytes":
                answer = live_bytes()
            elif request == "peak":
                answer = torch.cuda.max_memory_allocated()
            elif request == "idle":
                answer = idle_share(lambda: next(steps), 20)
            else:
                wait(s.device)
                began = time.perf_counter()
                for _ in range(request):
                    next(steps)
                wait(s.device)
                answer = (time.perf_counter() - began) / request
            pipe.send(answer)
    except Exception as error:  # told in one line by `ask`
        pipe.send(f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")


class Unmeasurable(Exception):
    """One line on what is missing on this machine."""


def ask(pipe, request):
    try:
        pipe.send(request)
        answer = pipe.recv()
    except (EOFError, OSError):
        raise Unmeasurable("a process ended without an answer") from None
    if isinstance(answer, str):
        raise Unmeasurable(answer)
    return answer


@contextlib.contextmanager
def processes(kinds: list[str], s: Setting) -> Iterator[dict]:
    """A pipe to a process for each way to train, compiled and warm."""
    spawn, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    try:
        for kind in kinds:
            pipes[kind], theirs = spawn.Pipe()
            workers.append(spawn.Process(target=serve, args=(theirs, kind, s), daemon=True))
            workers[-1].start()
            theirs.close()  # so that the end of the process is noticed
            ask(pipes[kind], 5)
        yield pipes
    finally:
        for pipe, worker in zip(pipes.values(), workers, strict=False):
            with contextlib.suppress(OSError):
                pipe.send(None)
            worker.join(20)
            worker.terminate()


def take_turns(pipes: dict, rounds: int, updates: int) -> dict[str, list[float]]:
    """Seconds of an update of each, in every round."""
    seconds = {kind: [] for kind in pipes}
    for _ in range(rounds):
        for kind, pipe in pipes.items():
            seconds[kind].append(ask(pipe, updates))
    return seconds


# --- The table --------------------------------------------------------------------------------------------------------


class Table:
    """The rows so far, each printed as it is measured."""

    def __init__(self):
        self.rows: list[dict] = []
        print(f"{'':60} {'median':>10} {'quartiles':>23} {'goal':>11}")

    def add(self, name: str, unit: str, samples: list[float], most: float = None, least: float = None) -> None:
        """`samples` against the largest value that is good enough, or the smallest; no samples: not measured here."""
        goal, value, low, high, met = most if least is None else least, None, None, None, None
        if samples:
            low, value, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else 3 * samples
            met = value <= goal if least is None else value >= goal
        numbers = dict(value=value, unit=unit, goal=goal, met=met, n=len(samples), low=low, high=high)
        self.rows.append({"name": name, **numbers})
        shown = f"{value:10.4g} {f'{low:.4g} to {high:.4g}':>23}" if samples else f"{'-':>10} {'':>23}"
        sign, verdict = "<=" if least is None else ">=", {True: "met", False: "missed", None: "not measured"}[met]
        print(f"{name + ', ' + unit:60} {shown} {sign + f' {goal:g}':>11}  {verdict}", flush=True)


def over(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def bench_updates(table: Table, s: Setting, rounds: int, updates: int) -> None:
    """Our own modes against each other: time, memory, gaps."""
    gpu = s.device == "cuda"
    with torch.device("meta"):
        one_copy = 4 * count_parameters(Transformer(PRESETS[s.preset]))
    with processes(["random", "curriculum-repeat", "bcp-1", "bcp-2"], s) as pipes:
        before = {kind: ask(pipe, "bytes") for kind, pipe in pipes.items()}
        seconds = take_turns(pipes, rounds, updates)
        after = {kind: ask(pipe, "bytes") for kind, pipe in pipes.items()}
        peak = {kind: ask(pipe, "peak") for kind, pipe in pipes.items()} if gpu else None
        idle = [ask(pipes["bcp-1"], "idle")] if gpu else []
    for p in (1, 2):
        ratio = over(seconds[f"bcp-{p}"], seconds["random"])
        table.add(f"BCP update over a plain one, {s.preset}, p = {p}", "ratio", ratio, most=1.03 if gpu else 1.10)
    for mode in ("curriculum-repeat", "bcp-1"):
        table.add(f"tokens/s of {mode} over random", "ratio", over(seconds["random"], seconds[mode]), least=0.97)
    beyond = [round((after["bcp-1"] - after["random"]) / one_copy, 3)]
    table.add("tensors kept beyond plain training", "copies of the weights", beyond, most=1.0)
    table.add("growth of tensors kept, BCP", "bytes", [float(after["bcp-1"] - before["bcp-1"])], most=0.0)
    more = [round((peak["bcp-1"] - peak["random"]) / one_copy, 3)] if peak else []
    table.add("peak memory beyond plain training, GPU", "copies of the weights", more, most=1.0)
    table.add("idle share of the GPU in 20 BCP updates", "share", idle, most=0.01)


def side_by_side(kinds: list[str], s: Setting, rounds: int, updates: int) -> dict[str, list[float]] | None:
    """Seconds of an update of each, in every round. None, and a line that says why, if one does not run here."""
    try:
        with processes(kinds, s) as pipes:
            return take_turns(pipes, rounds, updates)
    except Unmeasurable as error:
        print(f"bench: {error}", file=sys.stderr)
        return None


def bench_transformers(table: Table, s: Setting | None, rounds: int, updates: int) -> None:
    seconds = side_by_side(["random", "transformers"], s, rounds, updates) if s else None
    ratio = over(seconds["transformers"], seconds["random"]) if seconds else []
    table.add("tokens/s over transformers' Qwen2, both compiled", "ratio", ratio, least=1.15)


def bench_utilisation(table: Table, s: Setting, rounds: int, updates: int) -> None:
    share: list[float] = []
    seconds = side_by_side(["random", "products"], s, rounds, updates) if s.device == "cuda" else None
    if seconds:
        work = s.flops(PRESETS[s.preset]) / (2 * MATRIX**3)
        share = [
            work * product / update for product, update in zip(seconds["products"], seconds["random"], strict=True)
        ]
    table.add(f"model FLOP/s over the matrix rate, 117m, block {s.block_size}", "ratio", share, least=0.50)


# --- Programs as a whole ----------------------------------------------------------------------------------------------


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in GB of a program on two cores. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    two = {"preexec_fn": lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])}
    limit = two if hasattr(os, "sched_setaffinity") else {}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, **limit)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command[0]} failed")
    return time.perf_counter() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def first_update(flags: list[str], out: Path) -> float:
    """Seconds from the start of train.py to the first update in its metrics.jsonl."""
    began, metrics = time.perf_counter(), out / "metrics.jsonl"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "train.py", *flags, f"--out={out}"], cwd=ROOT, **quiet)
    while process.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def synthetic_text(file: Path, words: int) -> None:
    """Words of one to six syllables, as frequent as in real text (Zipf), lines of ten, documents of fifty."""
    random = np.random.default_rng(0)
    syllables = np.array([c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "an", "er", "ing")])
    lengths = 1 + random.poisson(1.5, 500_000)
    vocabulary = np.array(["".join(random.choice(syllables, n)) for n in lengths], dtype=object)
    cumulative = np.cumsum(1 / (np.arange(len(vocabulary)) + 2.7))
    with open(file, "w") as out:
        for left in range(words, 0, -1_000_000):
            text = vocabulary[np.searchsorted(cumulative, random.random(min(left, 1_000_000)) * cumulative[-1])]
            ends = np.cumsum(random.geometric(0.1, len(text)))
            ends = ends[ends < len(text)]
            text[ends] += "\n"
            text[ends[::50]] += "\n"
            out.write(" ".join(text).replace("\n ", "\n") + "\n")


def bench_programs(table: Table, rounds: int) -> None:
    table.add("python train.py --help", "s", [run(["train.py", "--help"])[0] for _ in range(rounds)], most=1.0)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--device=cpu", "--preset=tiny", f"--cache={folder}/cache"]
        first_update(flags, Path(folder) / "cold")
        seconds = [first_update(flags, Path(folder) / str(k)) for k in range(3)]
    table.add("to the first update of the default run, CPU", "s", seconds, most=10.0)


def bench_text(table: Table, words: int) -> None:
    prepared, ordered = [], []
    if words:
        order = ("import sys, curriculum, data, pathlib\n"
                 "corpus = data.open_prepared(next(pathlib.Path(sys.argv[1]).iterdir()))\n"
                 "curriculum.join(corpus, curriculum.order_lines(corpus, 'curriculum', 'surprisal', 0))")  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            file, cache = Path(folder) / "words.txt", Path(folder) / "cache"
            synthetic_text(file, words)
            prepared.append(run(["data.py", f"--data={file}", f"--cache={cache}"]))
            ordered.append(run(["-c", order, str(cache)]))
    for name, results, limit in (("preparing", prepared, 600.0), ("ordering", ordered, 60.0)):
        table.add(f"{name} 100 M words on two cores", "s", [seconds for seconds, _ in results], most=limit)
        table.add(f"{name} 100 M words, peak memory", "GB", [memory for _, memory in results], most=2.0)


def main() -> int:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes (default: off)")
    programs = "leave out the rows of whole programs, which are the CPU's and need rustbpe (default: off)"
    parser.add_argument("--no-programs", action="store_true", help=programs)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: a GPU if any)")
    args = parser.parse_args()
    try:
        device = machine.pick_device(args.device).type
    except ValueError as error:
        parser.error(str(error))
    device = "cuda" if device == "cuda" else "cpu"
    gpu, name = device == "cuda", "cpu"
    if gpu:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    shape = {"preset": "117m" if gpu else "tiny", "batch_size": 64 if gpu else 32, "block_size": 512 if gpu else 64}
    usual = Setting(**shape, device=device, compiled=gpu)
    turns = (10 if args.quick else 30, 10 if gpu else 3)  # rounds, updates in each

    table = Table()
    try:
        bench_updates(table, usual, *turns)
    except Unmeasurable as error:  # then nothing else is worth measuring
        parser.exit(1, f"bench: {error}\n")
    compiling = gpu or not args.quick
    bench_transformers(table, Setting(**shape, device=device, compiled=True) if compiling else None, *turns)
    for block in (512, 1024):
        bench_utilisation(table, Setting("117m", 2**15 // block, block, device, True), *turns)
    if not args.no_programs:
        bench_programs(table, 5)
        bench_text(table, 0 if args.quick else 100_000_000)

    file = ROOT / "results" / f"bench-{name}.json"
    file.write_text(json.dumps(table.rows, indent=1) + "\n")
    print(f"\n{file.relative_to(ROOT)}: {torch.__version__}, {os.cpu_count()} CPU cores{', ' + name if gpu else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
