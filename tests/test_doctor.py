"""tools/doctor.py without the machines that it is for; experiments/gpu.sh with a python that only notes its calls."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from flags import get_args
from tools import doctor

# --- The doctor -------------------------------------------------------------------------------------------------------


def test_the_cpu_is_described_tried_and_found_fit(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "problems_at_sight", lambda gpus: [])
    monkeypatch.setattr(doctor, "plan", lambda device, compiled: ("nano", 2))
    monkeypatch.setattr(doctor, "tried", lambda what, seconds: (True, doctor.trial(*what)))  # in this process
    assert doctor.main(["--no-compile"]) == 0
    software, cpu, trial, use, problem = capsys.readouterr().out.splitlines()
    assert torch.__version__ in software and " cores" in cpu and " GB free" in cpu
    assert trial.split()[:2] == ["nano", "--grad-accum=2:"] and "tokens/s" in trial
    assert use.endswith("python train.py --mode=bcp --p=1") and problem == "problem   none"


def test_a_trial_that_fails_is_a_problem_with_its_remedy(monkeypatch, capsys):
    said = {
        ("cpu", False): (True, "fine"),
        ("cpu", True): (False, "not within 3 s"),  # no problem: no run compiles on a CPU unless it is told to
        ("cuda:0", False): (False, "OutOfMemoryError: CUDA out of memory."),
        ("cuda:0", True): (False, "RuntimeError: the loss did not fall, from 1.0 to 2.0"),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "problems_at_sight", lambda gpus: [])
    monkeypatch.setattr(doctor, "compiler", lambda device: "cc")
    monkeypatch.setattr(doctor, "describe", lambda device: "a card")
    monkeypatch.setattr(doctor, "memory", lambda device: (15.0, 16.0))
    monkeypatch.setattr(doctor.machine, "pick_dtype", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(doctor, "tried", lambda what, seconds: said[what[0], what[3]])
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    problems = [line for line in out.splitlines() if line.startswith("problem")]
    assert len(problems) == 2 and "--grad-accum" in problems[0] and "update torch and the driver" in problems[1]
    assert "--preset=117m --grad-accum=2, for ten million words" in out and "not within 3 s" in out


@pytest.mark.parametrize(("gb", "half", "compiled", "wanted"), [
    (78, True, True, ("117m", 1)), (24, True, True, ("117m", 1)), (12, True, True, ("117m", 2)),
    (8, True, True, ("117m", 4)), (15, False, True, ("small", 1)), (15, True, False, ("117m", 4)),
    (40, True, False, ("117m", 1)), (4, True, True, ("small", 1)),
])  # fmt: skip
def test_the_memory_decides_what_fits(monkeypatch, gb, half, compiled, wanted):
    monkeypatch.setattr(doctor, "memory", lambda device: (gb, gb))
    monkeypatch.setattr(doctor.machine, "pick_dtype", lambda *_: torch.bfloat16 if half else torch.float32)
    assert doctor.plan("cuda:0", compiled) == wanted and doctor.plan("cpu", compiled) == ("tiny", 1)


def test_what_is_missing_is_seen_without_a_trial(monkeypatch):
    there = {"nvidia-smi": "/bin/nvidia-smi"}
    monkeypatch.setattr(doctor.shutil, "which", there.get)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "rustbpe" else name)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, int(2e9)))

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system\nis too old")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    rustbpe, driver, disk = doctor.problems_at_sight([])
    assert "rustbpe is missing, so --data must be" in rustbpe and "pip install rustbpe" in rustbpe
    assert "(The NVIDIA driver on your system is too old); update the driver" in driver and "--out=" in disk
    no_compiler = doctor.problems_at_sight(["cuda:0"])[1]
    assert "no C compiler or no triton" in no_compiler and "build-essential" in no_compiler
    there |= {"gcc": "/bin/gcc"}
    assert doctor.compiler("cuda:0") == "/bin/gcc" and doctor.compiler("cpu") is None
    assert len(doctor.problems_at_sight(["cuda:0"])) == 2


@pytest.mark.parametrize(("code", "wanted"), [
    ("print('noise'); print('float32, 1.0 s')", (True, "float32, 1.0 s")),
    ("import sys; sys.exit('ValueError: no')", (False, "ValueError: no")),
    ("import os; os.kill(os.getpid(), 9)", (False, "status -9")),
    ("import time; time.sleep(60)", (False, "not within 1 s")),
])  # fmt: skip
def test_a_trial_may_fail_crash_or_hang(monkeypatch, code, wanted):
    start = subprocess.run
    monkeypatch.setattr(doctor.subprocess, "run", lambda command, **more: start([*command[:2], code], **more))
    assert doctor.tried(("cpu", "nano", 1, False), 1.0 if "sleep" in code else 60.0) == wanted


# --- experiments/gpu.sh -----------------------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
# A python that notes its calls. One that has a word in common with the file `bad` fails after its first line.
echo "$*" >> calls
echo "said by $*"
for word in "$@"; do ! grep -qsxF -- "$word" bad || exit 3; done
"""
PARTS = ["tests", "doctor", "default", "bench", "loss", "memory", "table"]


@pytest.fixture
def gpu(tmp_path):
    """A function that runs gpu.sh with these words in a copy of the repository that has nothing else, and returns its
    exit status, its stderr, and the calls of python; and the folder."""
    (tmp_path / "experiments").mkdir()
    for name in ("gpu.sh", "e5-gpu.sh", "e5-gpu.toml"):
        shutil.copy(ROOT / "experiments" / name, tmp_path / "experiments")
    (tmp_path / "results").mkdir()
    for name in ("bench-cpu.json", "bench-card.json", "e5-gpu.json"):
        (tmp_path / "results" / name).write_text(f'"{name}"\n')
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def start(*words: str, out: Path | None = None) -> tuple[int, str, list[str]]:
        (tmp_path / "calls").write_text("")
        env = {name: value for name, value in os.environ.items() if name != "OUT"} | {"PYTHON": str(stub)}
        env |= {"OUT": str(out)} if out else {}
        done = subprocess.run(
            ["bash", "experiments/gpu.sh", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        return done.returncode, done.stderr, (tmp_path / "calls").read_text().splitlines()

    return start, tmp_path


def order(calls: list[str]) -> list[str]:
    """The parts that the calls belong to, each once, in order."""
    signs = {"pytest": "tests", "import tell; tell": "memory", "tools.doctor": "doctor", "out/gpu-default": "default",
             "tools.bench": "bench", "117m": "loss", "e5-gpu.toml": "table"}  # fmt: skip
    found = [next((part for sign, part in signs.items() if sign in call), None) for call in calls]
    return list(dict.fromkeys(filter(None, found)))


def test_the_parts_run_in_order_and_leave_their_results(gpu):
    start, folder = gpu
    status, _, calls = start(out=folder / "elsewhere")
    assert status == 0 and order(calls) == PARTS
    for place in (folder / "out" / "gpu", folder / "elsewhere"):
        texts = {file.stem: file.read_text() for file in place.glob("*.txt")}
        assert set(texts) == set(PARTS) and all(text.endswith(" s\ndone\n") for text in texts.values())
        assert "bench-card" in texts["bench"] and "bench-cpu" not in texts["bench"]
    assert (folder / "elsewhere" / "e5-gpu.json").exists() and len(list((folder / "elsewhere").iterdir())) == 8
    status, _, calls = start()
    assert status == 0 and order(calls) == []  # all done


def test_a_part_that_failed_does_not_stop_the_others_and_is_run_again(gpu):
    start, folder = gpu
    (folder / "bad").write_text("--out=out/gpu-float32\ntools.doctor\n")
    status, error, calls = start()
    assert (status, order(calls)) == (1, PARTS) and "not done: doctor loss; give" in error
    assert (folder / "out/gpu/loss.txt").read_text().splitlines()[-1] != "done"
    (folder / "bad").unlink()
    status, _, calls = start("doctor", "tests")
    assert (status, order(calls)) == (0, ["doctor"])
    status, _, calls = start()
    assert (status, order(calls)) == (0, ["loss"])


def test_a_part_that_is_killed_has_said_what_it_knew_and_is_run_again(gpu):
    start, folder = gpu
    (folder / "python").write_text(STUB + '[ "$2" != tools.bench ] || sleep 60\n')
    env = os.environ | {"PYTHON": str(folder / "python")}
    process = subprocess.Popen(["bash", "experiments/gpu.sh"], cwd=folder, env=env, start_new_session=True,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 30
    while not (folder / "out/gpu/bench.txt").exists() or not (folder / "out/gpu/bench.txt").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    assert "said by -m tools.bench" in (folder / "out/gpu/bench.txt").read_text()
    (folder / "python").write_text(STUB)
    assert order(start()[2]) == ["bench", "loss", "memory", "table"]


def test_wrong_words_are_one_line(gpu):
    start, folder = gpu
    assert start("tests", "tabel")[:2] == (2, "gpu.sh: tabel: must be prepare, or some of " + " ".join(PARTS) + "\n")
    status, error, calls = start("prepare")
    assert status and "CORPUS is missing" in error and not calls and not (folder / "out").exists()


def test_the_flags_that_the_script_gives_are_known(gpu, monkeypatch):
    start, folder = gpu
    monkeypatch.chdir(folder)  # --resume looks for the run
    trainings = [call.split()[1:] for call in start("default", "loss")[2] if call.startswith("train.py")]
    assert [get_args(words).dtype for words in trainings] == ["auto", "bfloat16", "float32"]
