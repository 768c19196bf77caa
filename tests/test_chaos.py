"""tests/chaos.py in short, and what a full disk does to a run."""

import os
import resource
import subprocess

import chaos
import pytest
import torch
from chaos import SHORT, content, flags_for, lines, program, same_run

import checkpoint
import journal


def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path):
    counts = chaos.kills(5, tmp_path, seed=1)  # every regime once
    assert counts["kills"] == counts["identical"] == 5
    assert counts["while writing a checkpoint"] and counts["within a batch's repeats"]


def test_a_killed_preparation_leaves_nothing_that_looks_finished_and_three_at_once_are_no_harm(tmp_path):
    assert chaos.kills_of_preparation(3, tmp_path) == {"kills": 3, "identical": 3}


def test_damaged_files_are_noticed_and_nothing_is_overwritten(tmp_path):
    assert chaos.flips(18, tmp_path) == {"flips": 18, "noticed": 18}  # three times each file


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_closed_terminals_dead_pipes_ignored_signals_and_missing_hard_links_change_nothing(tmp_path):
    assert chaos.stops(1, tmp_path) == {around.__name__.replace("_", " "): [1, 1] for around in chaos.STARTS}


def test_a_killed_evaluation_is_made_again(tmp_path):
    assert chaos.kills_of_evaluation(2, tmp_path) == {"kills": 2, "identical": 2}


def test_what_is_of_another_kind_in_a_checkpoint_is_noticed_though_its_digest_is_right(tmp_path):
    assert chaos.forgeries(8, tmp_path) == {"forgeries": 8, "noticed": 8}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_stays_level_over_a_thousand_updates(tmp_path):
    measured = chaos.memory(1000, tmp_path)
    assert measured["updates"] == 1000 and 100 < measured["first"] and measured["most"] <= 1.03 * measured["first"]


# --- A full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_file_larger():
    """Sets a limit, in bytes, to the size of files: writing beyond it fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def half_a_run(tmp_path):
    """The flags and the folder of a run that is to have 20 updates, and has 10."""
    flags, out = [*flags_for(tmp_path), *SHORT, "--mode=bcp", "--goal=5", "--save-every=5"], tmp_path / "run"
    assert program("train.py", *flags, f"--out={out}", "--max-updates=10")[0] == 0
    return flags, out


def check_full(status: int, stderr: str, file: str) -> None:
    assert status == 1, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("train.py: ")]
    assert line == stderr.splitlines()[-1] and file in line and "--resume" in line and "Traceback" not in stderr


@pytest.mark.parametrize("full", ["checkpoint.pt", "metrics.jsonl"])
def test_a_file_that_cannot_grow_ends_the_run_in_one_line(half_a_run, tmp_path, no_file_larger, full):
    flags, out = half_a_run
    before = content(out)
    no_file_larger(len(before[full]) // 2 if full == "checkpoint.pt" else len(before[full]) + 300)
    status, stderr = program("train.py", "--resume", f"--out={out}", "--max-updates=20")
    no_file_larger(resource.RLIM_INFINITY)
    check_full(status, stderr, full)
    after = content(out)
    assert all(after[name] == before[name] for name in ("checkpoint.pt", "checkpoint-previous.pt"))
    assert not any(name.endswith(".part") for name in after)
    assert len(after["metrics.jsonl"]) > len(
        before["metrics.jsonl"]
    )  # the last line is half-written, or a line too far
    assert program("train.py", "--resume", f"--out={out}", "--max-updates=20")[0] == 0
    assert program("train.py", *flags, f"--out={tmp_path / 'whole'}", "--max-updates=20")[0] == 0
    assert journal.updates(lines(out)) == journal.updates(lines(tmp_path / "whole"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with 5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a disk of 5 MB; the file-size limit stands for it")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_with_5_mb_ends_the_run_in_one_line_and_the_checkpoint_is_whole(tmp_path, small_disk):
    out, flags = small_disk / "run", [*flags_for(tmp_path), "--mode=bcp", "--goal=5", "--n-embd=64", "--save-every=5"]
    status, stderr = program(
        "train.py", *flags, f"--out={out}", "--keep-weights=evaluations", "--eval-every=1", "--epochs=20"
    )
    check_full(status, stderr, str(out))
    state = checkpoint.load(out / "checkpoint.pt")
    assert state["update"] >= 5 and torch.isfinite(state["model"]["model.norm.weight"]).all()
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)  # room again
    reached = state["update"] + 20
    assert program("train.py", "--resume", f"--out={out}", f"--max-updates={reached}")[0] == 0
    assert [r["update"] for r in journal.updates(lines(out))] == list(range(1, reached + 1))


def test_the_trials_notice_a_run_that_was_changed(tmp_path):
    """The comparison of chaos.py can fail."""
    flags = [*flags_for(tmp_path), *SHORT, "--mode=random", "--max-updates=14"]
    for name, more in (("one", []), ("two", []), ("other", ["--seed=1"])):
        assert program("train.py", *flags, *more, f"--out={tmp_path / name}")[0] == 0
    assert same_run(tmp_path / "one", tmp_path / "two") and not same_run(tmp_path / "one", tmp_path / "other")
