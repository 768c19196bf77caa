"""tools/compare.py: a grid of real trainings at tiny sizes, stopped and gone on with, and its table."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import compare

ROOT = Path(__file__).resolve().parents[1]
GRID = """
seeds = [0, 1]
reference = "random"
flags = "--cache={cache} --device=cpu --n-layer=1 --n-embd=16 --n-head=2 --n-kv-head=1 --n-mlp=24 {more}"
[runs]
random = "--mode=random"
"bcp, p = 2" = "--mode=bcp --p=2 --goal=7.4 --block-size=32"
"""


def test_a_grid_is_run_once_and_its_table_written(tmp_path, cache):
    grid = tmp_path / "small.toml"
    grid.write_text(GRID.format(cache=cache, more="--max-updates=6 --eval-every=100"))
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    # Two jobs have a thread each on two cores; one job would have two, which wait for each other on a busy machine.
    def compare_them() -> str:
        command = [sys.executable, "-m", "tools.compare", grid, "--results=results", "--jobs=2"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    first = compare_them()
    assert first.count(", seed ") == 4
    folders = {path.name for path in (tmp_path / "out" / "small").iterdir() if path.is_dir()}
    assert folders == {"random-s0", "random-s1", "bcp-p-2-s0", "bcp-p-2-s1"}
    results = json.loads((tmp_path / "results" / "small.json").read_text())["results"]
    assert [len(results[run]) for run in ("random", "bcp, p = 2")] == [2, 2]
    one = results["bcp, p = 2"]["0"]
    metrics = (tmp_path / "out" / "small" / "bcp-p-2-s0" / "metrics.jsonl").read_text().splitlines()
    assert one["val_loss"] == pytest.approx(json.loads(metrics[-1])["val_loss"], abs=1e-4) and one["unconverged"] == 0
    assert len([line for line in metrics if '"loss"' in line]) == 6
    table = (tmp_path / "results" / "small.md").read_text()
    assert table.count("\n") == 6 and "| bcp, p = 2 |" in table and table in first
    files = {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    assert set(files) == {"small.json", "small.md", "small.svg", "small.png"}

    shutil.rmtree(tmp_path / "out")  # what is in the .json is not made again, unless its flags have changed
    again = compare_them()
    assert ", seed " not in again and again.startswith("4 of 4 runs are taken from results/small.json, 0 are trained")
    assert "other code" not in again
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}


def test_spread_and_paired_difference_by_hand():
    assert compare.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 0.58"  # 1 / sqrt(3)
    # differences 1, 2, 3: mean 2, standard error 0.577, t = 4.303
    assert compare.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 2) == "+2.00 [-0.48, +4.48]"
    assert compare.spread([1.0], 1) == "1.0" and compare.paired([None, 1.0], [1.0, 1.0], 1) == "-"


def test_the_mean_is_over_whole_passes():
    def run(passes: float, n: int = 8) -> dict:  # of 100 updates
        return {"evaluations": [{"update": 100 * i / n, "passes": passes * i / n, "toy": i} for i in range(n + 1)]}

    assert compare.late(run(10), "toy") == 6.5  # five passes: evaluations 5 to 8
    assert compare.late(run(3), "toy") == 7  # one pass: 6 to 8
    assert compare.late(run(1.5), "toy") == 6  # the last half holds no whole pass
    assert compare.late({"evaluations": [{"update": 8, "passes": 1.0, "toy": None}]}, "toy") is None


def test_means_of_weights_have_a_row_and_forgetting_has_columns(tmp_path, cache, monkeypatch):
    more = "--max-updates=12 --eval-every=4 --epochs=1 --keep-weights=evaluations --track-forgetting=2"
    grid = tmp_path / "small.toml"
    text = GRID.format(cache=cache, more=more + " --order=curriculum --block-size=512 --batch-size=8")
    grid.write_text('average = { averaged = "--last=2" }\n' + text)
    monkeypatch.chdir(tmp_path)
    for run in ("random", "bcp, p = 2"):  # one after the other
        monkeypatch.setattr(sys, "argv", ["compare", str(grid), "--jobs=2", "--only", run])
        compare.main()
    results = json.loads((tmp_path / "out" / "small.json").read_text())["results"]
    rows = [line.split(" | ") for line in (tmp_path / "out" / "small.md").read_text().splitlines() if " | " in line]
    names = ["run", "random", "random, averaged", "bcp, p = 2", "bcp, p = 2, averaged"]
    assert [row[0].strip("| ") for row in rows if len(row) > 1] == names and len({len(row) for row in rows[2:]}) == 1
    gaps = []
    for seed in ("0", "1"):
        run, records = results["random"][seed], []
        for line in (tmp_path / "out" / "small" / f"random-s{seed}" / "metrics.jsonl").read_text().splitlines():
            records.append(json.loads(line))
        entries = [entry for r in records if r["update"] >= 9 for entry in r.get("forgetting", [])]
        assert run["forgotten"] == pytest.approx(
            sum(now - left for _, _, left, now in entries) / len(entries), abs=1e-4
        )
        averaged = json.loads((tmp_path / "out" / "small" / f"random-s{seed}" / "average.json").read_text())
        assert run["averaged"]["averaged"] == compare.rounded(averaged) and averaged["updates"] == [8, 12]
        gaps.append(
            results["bcp, p = 2"][seed]["averaged"]["averaged"]["val_loss"] - run["averaged"]["averaged"]["val_loss"]
        )
    assert f"{sum(gaps) / 2:+.2f} [" in rows[-1][6]

    grid.write_text('average = { averaged = "--last=3" }\n' + text)  # another mean, of the same trainings
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("checkpoint.pt")}
    monkeypatch.setattr(sys, "argv", ["compare", str(grid), "--jobs=2", "--only", "random"])
    compare.main()
    results = json.loads((tmp_path / "out" / "small.json").read_text())["results"]
    assert [run["averaged"]["averaged"]["updates"] for run in results["random"].values()] == [[4, 8, 12]] * 2
    assert before == {file: file.stat().st_mtime_ns for file in before} and len(before) == 4


REACHED = {"val_loss": 2.0, "toy": None, "seen": 100.0, "passes": 1.0, "repeats": 1, "unconverged": 0,
    "evaluations": [{"update": at, "val_loss": 2.0, "toy": None, "passes": at} for at in (0, 4)]}  # fmt: skip


@pytest.fixture
def grid_of(tmp_path, monkeypatch):
    """Run a grid of these runs in a folder of its own; a training only notes its flags, and reaches REACHED."""
    monkeypatch.chdir(tmp_path)

    def train(out: Path, flags: list[str], threads: int, trainer: str = "train.py") -> None:
        if "--fail" in flags:
            raise RuntimeError("no more")
        out.mkdir(exist_ok=True)
        (out / "trainer").write_text(trainer)
        (out / "flags").write_text(" ".join(flags))

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare, "summary", lambda out: dict(REACHED))

    def run(runs: dict[str, str], *words: str, seeds=(0, 1), more="") -> dict:
        lines = [f"{json.dumps(name)} = {json.dumps(flags)}" for name, flags in runs.items()]
        head = [f"seeds = {list(seeds)}", f"reference = {json.dumps(next(iter(runs)))}", more, "[runs]"]
        Path("a.toml").write_text("\n".join(head + lines))
        monkeypatch.setattr(sys, "argv", ["compare", "a.toml", *words])
        compare.main()
        return json.loads(Path("out/a.json").read_text())["results"]

    return run


def test_without_scipy_the_table_has_no_intervals_and_a_line_says_so(grid_of, monkeypatch, capsys):
    monkeypatch.setattr(compare, "SCIPY", False)
    grid_of({"a": ""})
    assert "no intervals: scipy is missing (pip install scipy)" in capsys.readouterr().out.splitlines()[1]
    assert compare.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 2) == "+2.00"


def test_a_run_with_other_flags_is_made_anew_and_the_old_one_kept(grid_of, monkeypatch, capsys):
    grid_of({"a": "--max-updates=9"})
    Path("out/a.json").unlink()
    grid_of({"a": "--max-updates=5"})
    assert Path("out/a/a-s0/flags").read_text() == "--max-updates=5 --seed=0"
    assert Path("out/a/a-s0.old1/flags").read_text() == "--max-updates=9 --seed=0"
    capsys.readouterr()
    monkeypatch.setattr(compare, "code", lambda: "changed")
    assert grid_of({"a": "--max-updates=5"}, seeds=(0, 1, 2))["a"]["2"]["code"] == "changed"
    out = capsys.readouterr().out
    assert "2 of 3 runs are taken from out/a.json, 1 are trained" in out and "2 runs were made by other code" in out
    assert "(1 of 1, 0 min left)" in out
    results = grid_of({"a": "--max-updates=5"}, "--again", seeds=(0, 1, 2))
    assert {run["code"] for run in results["a"].values()} == {"changed"} and Path("out/a/a-s1.old2").exists()


def test_a_grid_may_name_what_trains(grid_of):
    grid_of({"a": ""})
    assert Path("out/a/a-s0/trainer").read_text() == "train.py"
    grid_of({"a": ""}, more='program = "-m experiments.dual train"')
    assert Path("out/a/a-s0/trainer").read_text() == "-m experiments.dual train"  # made anew


def test_after_a_failure_no_run_begins_and_what_was_made_is_kept(grid_of, capsys):
    with pytest.raises(SystemExit) as stopped:
        grid_of({"a": "", "b": "--fail", "c": ""}, seeds=[0])
    assert stopped.value.code == 1 and capsys.readouterr().err == "tools.compare: no more\n"
    results = json.loads(Path("out/a.json").read_text())["results"]
    assert results["a"] and not Path("out/a/c-s0").exists()
    with pytest.raises(RuntimeError, match="killed by signal 9"):
        compare.program("-c", "import os; os.kill(os.getpid(), 9)", threads=1)


def test_one_line_for_a_busy_grid_folders_in_common_and_no_scores(grid_of, monkeypatch, capsys):
    def refused(runs: dict[str, str]) -> str:
        with pytest.raises(SystemExit):
            grid_of(runs)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "no folder of its own for 'lr > 1'" in refused({"lr < 1": "", "lr > 1": ""})
    assert "no folder of its own for 'é'" in refused({"a": "", "é": ""})
    Path("out/a").mkdir(parents=True)
    with compare.checkpoint.lock(Path("out/a")):
        assert "another process is at work on this grid" in refused({"a": ""})
    monkeypatch.setitem(REACHED, "val_loss", None)
    assert "nothing to compare" in refused({"a": ""})


def test_odd_names_and_evaluations_at_other_updates_have_their_rows(grid_of, monkeypatch):
    grid_of({"_a$": "", "b|$c$": ""})
    late = {"update": 7, "val_loss": 3.0, "toy": None, "passes": 1.0}
    monkeypatch.setitem(REACHED, "evaluations", [*REACHED["evaluations"], late])
    grid_of({"_a$": "", "b|$c$": ""}, seeds=(0, 1, 2))
    table = Path("out/a.md").read_text()
    assert "| \\_a\\$ |" in table and "| b\\|\\$c\\$ |" in table
    assert b"svg" in Path("out/a.svg").read_bytes() and "1 comparisons with" in table


def test_a_signal_ends_the_trainings_and_says_how_to_go_on(tmp_path, cache):
    grid = tmp_path / "small.toml"
    grid.write_text(GRID.format(cache=cache, more="--epochs=100000 --block-size=32"))
    command, env = [sys.executable, "-m", "tools.compare", grid], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not any(file.stat().st_size for file in tmp_path.glob("out/small/*/metrics.jsonl")):
            time.sleep(0.05)
        process.terminate()
        said = process.communicate()[1]
    assert process.returncode == 143 and said.count("\n") == 1
    assert f"SIGTERM: saved; to go on: python -m tools.compare {grid}" in said
    assert len(list(tmp_path.glob("out/small/*/config.json"))) == 1


def test_holm_by_hand():
    assert compare.holm([0.04, 0.01, 0.03]) == 0.01  # 0.01 < 0.05 / 3, 0.03 > 0.05 / 2
    assert compare.holm([0.04, 0.01, 0.02]) == 0.04 and compare.holm([0.2]) < 0
    assert compare.difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])[2] == pytest.approx(0.0742, abs=1e-4)  # t = 3.464


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [(None, "FileNotFoundError"), ("seeds = [", "TOMLDecodeError"), ("seeds = [1]", "KeyError"),
     ("seeds=[0]\nreference='b'\n[runs]\na=''", "reference = 'b' is not one of [runs]")],
)  # fmt: skip
def test_a_wrong_grid_is_one_line(tmp_path, monkeypatch, capsys, grid, wanted):
    file = tmp_path / "grid.toml"
    if grid is not None:
        file.write_text(grid)
    monkeypatch.setattr(sys, "argv", ["compare", str(file)])
    with pytest.raises(SystemExit) as stopped:
        compare.main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and wanted in err
