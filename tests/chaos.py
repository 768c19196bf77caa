"""Kill trainings, close their terminals, damage their files, and see whether anything is lost or passes unnoticed.

    python tests/chaos.py                                       # three minutes on two cores
    python tests/chaos.py --kills=5 --stops=1 --flips=20 --updates=500

Prints a table and ends with exit status 1 if any trial failed. Trainings run in processes of their own, forked from one
that has imported torch already, which is all that distinguishes them from `python train.py`.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
import tqdm  # noqa: E402

import checkpoint  # noqa: E402
import data  # noqa: E402
import journal  # noqa: E402
import toy  # noqa: E402
from flags import get_args  # noqa: E402

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "tiktoken", "torch._dynamo"])  # the last is imported by optimizers
tqdm.tqdm.set_lock(threading.RLock())  # its own, for several processes, is reported as leaked by those that are killed

NANO = "--preset=nano --vocab-size=400 --device=cpu".split()
SHORT = "--epochs=2 --norms-every=1 --save-every=3 --eval-every=7 --keep-weights=evaluations".split()
REGIMES = {
    "random": ["--mode=random"],
    "curriculum": ["--mode=curriculum", "--lr-schedule=cosine"],
    "curriculum-repeat": ["--mode=curriculum-repeat", "--repeats=4"],
    "bcp, p = 1": ["--mode=bcp", "--goal=5"],
    "bcp, p = 2": ["--mode=bcp", "--p=2", "--goal=5"],
    "bcp with replay": ["--mode=bcp", "--goal=5", "--replay=0.25", "--track-forgetting=7"],
    "lfr": ["--mode=lfr"],
}


# --- Programs ---------------------------------------------------------------------------------------------------------


def program(*words: str | Path, folder: Path | None = None) -> tuple[int, str]:
    """Run `python train.py ...` or `python tools/export.py ...` in this process; its exit status and its stderr.

    Any exception that a user would see as a traceback comes through.
    """
    name, *flags = map(str, words)
    stderr, here = io.StringIO(), Path.cwd()
    os.chdir(folder or here)
    try:
        with (
            mock.patch.object(sys, "argv", [name, *flags]),
            mock.patch.object(sys, "excepthook", sys.__excepthook__),  # terminal.py has another one
            contextlib.redirect_stderr(stderr),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                try:
                    runpy.run_path(str(ROOT / name), run_name="__main__")
                    status = 0
                except (OSError, KeyboardInterrupt):  # as the interpreter does it
                    if sys.excepthook is sys.__excepthook__:
                        raise
                    sys.excepthook(*sys.exc_info())
            except SystemExit as end:
                status = end.code
                if isinstance(status, str):  # as the interpreter does it
                    print(status, file=sys.stderr)
                    status = 1
    finally:
        os.chdir(here)
    return status or 0, stderr.getvalue()


def training(flags: list[str], log: Path, around: Callable[[], None] | None = None) -> None:
    """`python train.py FLAGS`, in a process of its own; what it prints goes to `log`, or where `around` puts it."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if around:
        around()
    import train

    sys.argv = ["train.py", *flags]
    sys.exit(train.main(get_args()))


def evaluation(run: Path) -> None:
    """`python evaluate.py RUN`, in a process of its own."""
    sys.exit(program("evaluate.py", run, "--device=cpu")[0])


def warm_up() -> None:
    """Import torch in the process that others are forked from, so that the time of the first can be taken."""
    process = FORKS.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def start(flags: list[str], out: Path, around: Callable[[], None] | None = None) -> multiprocessing.Process:
    log = out.with_name(f"{out.name}.log")
    process = FORKS.Process(target=training, args=([*flags, f"--out={out}"], log, around))
    process.start()
    return process


def finish(flags: list[str], out: Path, around: Callable[[], None] | None = None) -> bool:
    process = start(flags, out, around)
    process.join()
    return process.exitcode == 0


def text(folder: Path, words: int = 2500) -> Path:
    """A text file of scenes of the built-in corpus: 19 batches."""
    file = folder / "scenes.txt"
    file.write_text("\n\n".join("\n".join(scene) for scene in toy.documents(words=words)) + "\n")
    return file


def flags_for(folder: Path) -> list[str]:
    return [f"--data={text(folder)}", f"--cache={folder / 'cache'}", *NANO]


# --- Kills ------------------------------------------------------------------------------------------------------------


def lines(out: Path) -> list[dict]:
    """The records of metrics.jsonl; none if it is not there yet."""
    return journal.read(out) if (out / journal.FILE).exists() else []


def places(out: Path, repeated: bool) -> list[int]:
    """Where in metrics.jsonl the updates begin, or, where there are such, only those that repeat a batch."""
    starts, again, at = [], [], 0
    for line in (out / journal.FILE).read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        starts += [at] if "loss" in record else []
        again += [at] if record.get("repeat", 1) > 1 else []
        at += len(line)
    return repeated and again or starts


def equal(one: object, other: object) -> bool:
    """Equal to the bit; how many seconds a run took does not count."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(key == "seconds" or equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def same_run(one: Path, other: Path) -> bool:
    """Weights, moments, anchor, alpha, the weights kept, and the record of every update and evaluation."""
    kept, other_kept = ([file.name for _, file in checkpoint.kept_weights(out)] for out in (one, other))
    if kept != other_kept or (one / journal.FILE).read_bytes() != (other / journal.FILE).read_bytes():
        return False
    return all(equal(checkpoint.load(one / name), checkpoint.load(other / name)) for name in (checkpoint.NAME, *kept))


def wait(process: multiprocessing.Process, until: Callable[[], bool]) -> None:
    while process.is_alive() and not until():
        time.sleep(0.0002)


def kills(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill n trainings at random moments and resume them to the end; how many, how many became what they should.

    The regimes take turns. Of each three moments one is any moment from start to end, one is while a checkpoint is
    written, and one is before an update that repeats a batch, if there are such.
    """
    rng, flags = random.Random(seed), flags_for(folder)
    counts = dict.fromkeys(("kills", "identical", "while writing a checkpoint", "within a batch's repeats"), 0)
    whole, seconds = {}, {}
    warm_up()
    for name, regime in REGIMES.items():
        whole[name], began = folder / f"whole-{len(whole)}", time.perf_counter()
        if not finish([*flags, *SHORT, *regime], whole[name]):
            raise RuntimeError(f"{name}: the undisturbed run failed, see {whole[name]}.log")
        seconds[name] = time.perf_counter() - began
    for trial in range(n):
        name, out = list(REGIMES)[trial % len(REGIMES)], folder / f"killed-{trial}"
        mine = [*flags, *SHORT, *REGIMES[name]]
        while True:  # until the kill comes before the end
            shutil.rmtree(out, ignore_errors=True)
            process = start(mine, out)
            if trial % 3 == 0:
                time.sleep(rng.uniform(0, seconds[name]))
            else:
                place = rng.choice(places(whole[name], repeated=trial % 3 == 2))
                metrics, part = out / journal.FILE, out / (checkpoint.NAME + ".part")
                wait(process, lambda: metrics.exists() and metrics.stat().st_size >= place)  # noqa: B023
                if trial % 3 == 1:
                    wait(process, part.exists)
            process.kill()
            process.join()
            if process.exitcode < 0:
                break
        counts["kills"] += 1
        counts["while writing a checkpoint"] += (out / (checkpoint.NAME + ".part")).exists()
        updates = journal.updates(lines(whole[name]))
        reached = len(journal.updates(lines(out)))
        counts["within a batch's repeats"] += 0 < reached < len(updates) and updates[reached]["repeat"] > 1
        resume = ["--resume"] if (out / checkpoint.CONFIG).exists() else []
        counts["identical"] += finish([*mine, *resume], out) and same_run(whole[name], out)
    return counts


# --- What a training is started in ------------------------------------------------------------------------------------


def in_terminal(name: str) -> None:
    """Lead a session whose terminal this is: when it is closed, the system sends SIGHUP."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)


def in_terminal_with_nohup(name: str) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    in_terminal(name)


def with_signals_ignored() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def with_a_dead_pipe() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)


def without_hard_links() -> None:
    def link(*names) -> None:
        raise PermissionError(1, "Operation not permitted", *names)

    os.link = link


def no_stderr() -> None:
    os.close(2)
    sys.stderr = None


# How a training is started -> the exit status when something has happened to it in the middle
STARTS: dict[Callable[..., None], int] = {
    in_terminal: 128 + signal.SIGHUP, in_terminal_with_nohup: 0, with_signals_ignored: 0, with_a_dead_pipe: 0,
    no_stderr: 0, without_hard_links: -signal.SIGKILL,
}  # fmt: skip


def stops(n: int, folder: Path, seed: int = 0) -> dict[str, list[int]]:
    """Start trainings in each of these ways, n of each, and close the terminal, send the signals, or kill them, at a
    random update. Of each way: how many were tried, and how many ended with the right status and, gone on with if they
    had not, as the undisturbed run."""
    rng, flags, counts = random.Random(seed), [*flags_for(folder), *SHORT, *REGIMES["bcp, p = 1"]], {}
    warm_up()
    if not finish(flags, whole := folder / "whole"):
        raise RuntimeError(f"the undisturbed run failed, see {whole}.log")
    for around, status in STARTS.items():
        name = around.__name__.replace("_", " ")
        counts[name] = [0, 0]
        for trial in range(n):
            out, place = folder / f"{around.__name__}-{trial}", rng.choice(places(whole, repeated=False)[1:-5])
            ours, theirs = os.openpty()
            os.set_blocking(ours, False)
            terminal = "terminal" in name
            process = start(flags, out, partial(around, os.ttyname(theirs)) if terminal else around)

            def reached() -> bool:
                with contextlib.suppress(OSError):
                    os.read(ours, 1 << 16)  # noqa: B023
                metrics = out / journal.FILE  # noqa: B023
                return metrics.exists() and metrics.stat().st_size >= place  # noqa: B023

            wait(process, reached)
            os.close(theirs)
            os.close(ours)
            if around is with_signals_ignored:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(process.pid, number)
            if around is without_hard_links:
                process.kill()
            process.join()
            right = process.exitcode == status
            if right and status:
                right = finish(["--resume"], out, None if terminal else around)
            counts[name][0] += 1
            counts[name][1] += right and same_run(whole, out)
    return counts


def kills_of_evaluation(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill n evaluations, then evaluate again; how many gave the scores of an undisturbed one."""
    rng, run, counts = random.Random(seed), folder / "run", {"kills": 0, "identical": 0}
    warm_up()
    if not finish([*flags_for(folder), *SHORT, "--max-updates=6"], run):
        raise RuntimeError(f"the run to score failed, see {run}.log")
    before, began = content(run), time.perf_counter()
    evaluate(run)
    seconds, whole = time.perf_counter() - began, content(run)
    for _ in range(n):
        for name in whole.keys() - before.keys():
            (run / name).unlink()
        process = FORKS.Process(target=evaluation, args=(run,))
        process.start()
        time.sleep(rng.uniform(0.2, 1) * seconds)
        process.kill()
        process.join()
        counts["kills"] += 1
        counts["identical"] += evaluate(run) == 0 and content(run) == whole
    return counts


def evaluate(run: Path) -> int:
    process = FORKS.Process(target=evaluation, args=(run,))
    process.start()
    process.join()
    return process.exitcode


def kills_of_preparation(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill n preparations of a corpus, then prepare it three at a time; how many gave the folder they should."""
    rng, file, counts = random.Random(seed), text(folder), {"kills": 0, "identical": 0}
    whole = content(data.prepare(str(file), folder / "undisturbed", vocab_size=400, quiet=True))
    warm_up()
    began = time.perf_counter()
    prepare(file, folder / "timed")
    seconds = time.perf_counter() - began
    for trial in range(n):
        cache = folder / f"cache-{trial}"
        process = FORKS.Process(target=prepare, args=(file, cache))
        process.start()
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        three = [FORKS.Process(target=prepare, args=(file, cache)) for _ in range(3)]
        for process in three:
            process.start()
        for process in three:
            process.join()
        finished = [path for path in cache.iterdir() if not path.name.startswith(".")]
        counts["kills"] += 1
        counts["identical"] += [content(path) for path in finished] == [whole] and not any(p.exitcode for p in three)
    return counts


def prepare(file: Path, cache: Path) -> None:
    data.prepare(str(file), cache, vocab_size=400, quiet=True)


# --- Damage -----------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flips(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Flip a byte of a run's files, or cut one, n times, and resume; how many were noticed, in one line that names the
    file, with exit status 1 or 2 and every other byte as it was."""
    rng, flags, out, counts = random.Random(seed), flags_for(folder), folder / "run", {"flips": 0, "noticed": 0}
    if not finish([*flags, *SHORT, "--max-updates=9"], out):
        raise RuntimeError(f"the run to damage failed, see {out}.log")
    prepared = data.prepare(flags[0].removeprefix("--data="), folder / "cache", vocab_size=400, quiet=True)
    names = ("tokens.bin", "index.npz", "tokenizer.json", "meta.json")
    files = [out / checkpoint.NAME, out / "tokenizer.json", *(prepared / name for name in names)]
    for trial in range(n):
        file, whole = files[trial % len(files)], files[trial % len(files)].read_bytes()
        at = rng.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ rng.randint(1, 255)]) + whole[at + 1 :]
        file.write_bytes(rng.choice((flipped, flipped, whole[:at])))
        before = content(out), content(prepared)
        status, stderr = program("train.py", "--resume", f"--out={out}", "--max-updates=12")
        noticed = status in (1, 2) and stderr.count("\n") == 1 and file.name in stderr
        counts["flips"] += 1
        counts["noticed"] += noticed and (content(out), content(prepared)) == before
        file.write_bytes(whole)
    return counts


def forge(state: dict, rng: random.Random) -> str:
    """Put something of another kind in the place of a random part of a checkpoint; which part it was."""
    name, place = "", state
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice([key for key in keys if name or key not in ("run", "seconds")])
        name, part = f"{name}.{key}", place[key]
        if isinstance(part, torch.Tensor):
            shorter, longer = part.flatten()[: part.numel() // 2], part.repeat(2, *[1] * part.dim())
            small = torch.zeros(()).expand(part.shape) if part.dim() else longer  # one number in memory
            place[key] = rng.choice([shorter, longer, small, part.double()])
            return name
        if isinstance(part, dict | list) and part and "param_groups" not in name:
            place = part
            continue
        if "param_groups" not in name and name != ".stream.hardest":
            place[key] = rng.choice(["x", [1], {"x": 1}, None, 1 << 80 if isinstance(part, float) else 0.5])
            return name
        name, place = "", state


def forgeries(n: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Put something of another kind or size into a checkpoint, with the right digest, n times, and resume; how many
    were noticed, in one line that names the file, with exit status 2 and every other byte as it was."""
    rng, out, counts = random.Random(seed), folder / "run", {"forgeries": 0, "noticed": 0}
    if not finish([*flags_for(folder), *SHORT, *REGIMES["bcp, p = 1"], "--max-updates=8"], out):
        raise RuntimeError(f"the run to damage failed, see {out}.log")
    whole = (out / checkpoint.NAME).read_bytes()
    for _ in range(n):
        state = checkpoint.load(out / checkpoint.NAME)
        name = forge(state, rng)
        checkpoint.save(out / checkpoint.NAME, state)
        before = content(out)
        status, stderr = program("train.py", "--resume", f"--out={out}", "--max-updates=12")
        noticed = status == 2 and stderr.count("\n") == 1 and checkpoint.NAME in stderr and content(out) == before
        if not noticed:
            print(f"{name}: {status} {stderr}", file=sys.stderr)
        counts["forgeries"] += 1
        counts["noticed"] += noticed
        (out / checkpoint.NAME).write_bytes(whole)
    return counts


# --- Memory -----------------------------------------------------------------------------------------------------------


def memory(updates: int, folder: Path) -> dict[str, float]:
    """Resident memory of a training, MB, when it has made 100 updates, and the largest after that."""
    out = folder / "long"
    often = ["--save-every=50", "--eval-every=50", f"--max-updates={updates}", "--epochs=1000", "--goal=5"]
    process = start([*flags_for(folder), *often], out)

    def resident() -> float:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    wait(process, lambda: len(lines(out)) > 103)
    first, most = resident(), 0.0
    while process.is_alive():
        with contextlib.suppress(OSError, IndexError):  # it ends while we look
            most = max(most, resident())
        time.sleep(0.02)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the long run failed, see {out}.log")
    return {"updates": len(journal.updates(lines(out))), "first": first, "most": most}


# --- Command line -----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=int, default=25, help="of trainings (default: 25)")
    parser.add_argument("--stops", type=int, default=5, help="of each way to start a training (default: 5)")
    parser.add_argument("--flips", type=int, default=100, help="damaged files (default: 100)")
    parser.add_argument("--updates", type=int, default=2000, help="of the memory trial (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places (default: 0)")
    args = parser.parse_args()
    failed = 0

    def row(trial: str, good: bool, result: str) -> None:
        nonlocal failed
        failed += not good
        print(f"| {trial} | {result} |{'' if good else ' FAILED'}", flush=True)

    print("| trial | outcome |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folders = [
            Path(scratch) / name for name in ("kills", "preparation", "flips", "memory", "stops", "scores", "forged")
        ]
        for folder in folders:
            folder.mkdir()
        k = kills(args.kills, folders[0], args.seed)
        where = ", ".join(f"{k[name]} {name}" for name in list(k)[2:])
        good = k["identical"] == args.kills and all(k.values())
        row(
            "SIGKILL, then `--resume`",
            good,
            f"{k['identical']} of {k['kills']} bit-identical to the undisturbed run ({where})",
        )
        k = kills_of_preparation(args.kills, folders[1], args.seed)
        outcome = f"{k['identical']} of {k['kills']} the same folder as undisturbed"
        row("SIGKILL while preparing a corpus, then three at once", k["identical"] == args.kills, outcome)
        f = flips(args.flips, folders[2], args.seed)
        good = f["noticed"] == args.flips
        row(
            "a byte flipped, or the file cut",
            good,
            f"{f['noticed']} of {f['flips']} noticed and named, nothing overwritten",
        )
        for name, (tried, held) in stops(args.stops, folders[4], args.seed).items():
            row(
                f"started {name}, then disturbed",
                held == tried,
                f"{held} of {tried} bit-identical, with the right status",
            )
        k = kills_of_evaluation(args.kills, folders[5], args.seed)
        outcome = f"{k['identical']} of {k['kills']} the same files as undisturbed"
        row("SIGKILL while evaluating, then again", k["identical"] == args.kills, outcome)
        f = forgeries(args.flips, folders[6], args.seed)
        outcome = f"{f['noticed']} of {f['forgeries']} noticed and named, nothing overwritten"
        row("a checkpoint with another size or type inside, and the right digest", f["noticed"] == args.flips, outcome)
        m = memory(args.updates, folders[3])
        good = m["updates"] == args.updates and m["most"] <= 1.02 * m["first"]
        outcome = f"{m['first']:.0f} MB after 100, at most {m['most']:.0f} MB later ({m['most'] / m['first'] - 1:+.1%})"
        row(f"{m['updates']:,} updates in a row: resident memory", good, outcome)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
