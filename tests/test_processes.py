"""Several processes, started by torchrun: the same run as one process makes, and weights that agree to the last bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import NANO, ROOT, run

import checkpoint
import journal

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

# train.py, but each process leaves its id in notes/pid-RANK, and update and digest of its weights in notes/end-RANK.
SCRIPT = """
import hashlib, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import flags, train
notes, rank, real = Path(sys.argv[2]), os.environ["RANK"], train.train

def watched(run, *rest):
    (notes / f"pid-{rank}").write_text(str(os.getpid()))
    stopped = real(run, *rest)
    weights = hashlib.blake2b(b"".join(w.detach().numpy().tobytes() for w in run.model.parameters()))
    (notes / f"end-{rank}").write_text(f"{run.update} {weights.hexdigest()}")
    return stopped

train.train = watched
sys.exit(train.main(flags.get_args(sys.argv[3:])))
"""


@pytest.fixture
def flags(text_file, cache):
    few = ["--goal=5.6", "--eta=0.5", "--eval-every=100000", "--save-every=5"]
    return [f"--data={text_file}", f"--cache={cache}", *NANO, *few]


@pytest.fixture
def two(flags, tmp_path):
    """Start two processes with these flags and more; returns the running torchrun."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(*more) -> subprocess.Popen:
        command = [*TORCHRUN, tmp_path / "script.py", ROOT, tmp_path / "notes", *flags, f"--out={tmp_path / 'two'}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([*map(str, command), *more], text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in journal.updates(journal.read(out))]


def ends(tmp_path: Path) -> list[str]:
    return [(tmp_path / "notes" / f"end-{rank}").read_text() for rank in (0, 1)]


def wait_for(file: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not file.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert file.exists(), process.stderr.read() if process.poll() is not None else "no such file after a minute"


@pytest.mark.parametrize(
    ("method", "stops"),
    [
        (["--mode=bcp", "--p=1"], [13, 20]),
        (["--mode=bcp", "--p=2", "--replay=0.25", "--track-forgetting=5", "--grad-accum=2"], [20]),
    ],
)
def test_two_processes_make_the_run_that_one_makes_resumed_too(method, stops, flags, two, tmp_path):
    one = tmp_path / "one"
    run(flags, one, *method, "--max-updates=20")
    for stop in stops:
        process = two(*method, f"--max-updates={stop}", *(["--resume"] if stop != stops[0] else []))
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.count("training time") == 1  # only the first process reports
        first, second = ends(tmp_path)
        assert first == second and first.startswith(f"{stop} ")
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=1e-4, rel=0)
    assert len(losses(one)) == 20 and sorted(f.name for f in one.iterdir()) == sorted(
        f.name for f in (tmp_path / "two").iterdir()
    )


def test_a_process_that_dies_ends_the_run_and_resume_goes_on(flags, two, tmp_path):
    process = two("--mode=random", "--epochs=100000")
    wait_for(tmp_path / "two" / "checkpoint.pt", process)
    os.kill(int((tmp_path / "notes" / "pid-1").read_text()), signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "train.py: another process of this run has ended" in errors
    assert f"to go on: python train.py --resume --out={tmp_path / 'two'}" in errors
    saved = checkpoint.load(tmp_path / "two" / "checkpoint.pt")["update"]
    updates, _ = run([], tmp_path / "two", "--resume", f"--max-updates={saved + 3}")  # by one process, too
    assert len(updates) == saved + 3


def test_a_signal_to_one_process_stops_all_at_the_same_update(two, tmp_path):
    process = two("--mode=bcp", "--epochs=100000", "--save-every=1000000")
    for rank in (0, 1):
        wait_for(tmp_path / "notes" / f"pid-{rank}", process)
    time.sleep(0.5)
    os.kill(int((tmp_path / "notes" / "pid-1").read_text()), signal.SIGTERM)
    process.communicate(timeout=90)
    first, second = ends(tmp_path)
    assert first == second
    update = checkpoint.load(tmp_path / "two" / "checkpoint.pt")["update"]
    assert update == int(first.split()[0]) == len(losses(tmp_path / "two"))


def test_a_batch_that_cannot_be_shared_is_a_wrong_use_told_in_one_line(two):
    process = two("--mode=random", "--batch-size=15")
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "--grad-accum=1: must divide --batch-size=15 in each of 2 processes" in errors
