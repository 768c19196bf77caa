"""tools/compare.py: a grid of real trainings at tiny sizes, stopped and gone on with, and its table."""

import json
import os
import shutil
import subprocess
import sys
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
        command = [sys.executable, "-m", "tools.compare", grid, "--jobs=2"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    first = compare_them()
    assert first.count(", seed ") == 4
    folders = {path.name for path in (tmp_path / "out" / "small").iterdir()}
    assert folders == {"random-s0", "random-s1", "bcp-p-2-s0", "bcp-p-2-s1"}
    results = json.loads((tmp_path / "results" / "small.json").read_text())["results"]
    assert [len(results[run]) for run in ("random", "bcp, p = 2")] == [2, 2]
    one = results["bcp, p = 2"]["0"]
    metrics = (tmp_path / "out" / "small" / "bcp-p-2-s0" / "metrics.jsonl").read_text().splitlines()
    assert one["val_loss"] == pytest.approx(json.loads(metrics[-1])["val_loss"], abs=1e-4) and one["unconverged"] == 0
    assert len([line for line in metrics if '"loss"' in line]) == 6
    table = (tmp_path / "results" / "small.md").read_text()
    assert table.count("\n") == 4 and "| bcp, p = 2 |" in table and table in first
    files = {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    assert set(files) == {"small.json", "small.md", "small.svg", "small.png"}

    only = [sys.executable, "-m", "tools.compare", grid, "--only", "no such run"]
    wrong = subprocess.run(only, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and "'no such run' is not a run of" in wrong.stderr and wrong.stderr.count("\n") == 1

    shutil.rmtree(tmp_path / "out")  # what is in the .json is not made again, unless its flags have changed
    assert ", seed " not in compare_them()
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    grid.write_text(grid.read_text().replace("--goal=7.4", "--goal=7.3"))
    assert compare_them().count(", seed ") == 2


def test_spread_and_paired_difference_by_hand():
    assert compare.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 0.58"  # 1 / sqrt(3)
    # differences 1, 2, 3: mean 2, standard error 0.577, t = 4.303
    assert compare.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 2) == "+2.00 [-0.48, +4.48]"
    assert compare.spread([1.0], 1) == "1.0" and compare.paired([None, 1.0], [1.0, 1.0], 1) == "-"


def test_means_of_weights_have_a_row_and_forgetting_has_columns(tmp_path, cache, monkeypatch):
    more = "--max-updates=12 --eval-every=4 --epochs=1 --keep-weights=evaluations --track-forgetting=2"
    grid = tmp_path / "small.toml"
    text = GRID.format(cache=cache, more=more + " --order=curriculum --block-size=512 --batch-size=8")
    grid.write_text('average = { averaged = "--last=2" }\n' + text)
    monkeypatch.chdir(tmp_path)
    for run in ("random", "bcp, p = 2"):  # one after the other
        monkeypatch.setattr(sys, "argv", ["compare", str(grid), "--jobs=2", "--only", run])
        compare.main()
    results = json.loads((tmp_path / "results" / "small.json").read_text())["results"]
    rows = [line.split(" | ") for line in (tmp_path / "results" / "small.md").read_text().splitlines()]
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
    results = json.loads((tmp_path / "results" / "small.json").read_text())["results"]
    assert [run["averaged"]["averaged"]["updates"] for run in results["random"].values()] == [[4, 8, 12]] * 2
    assert before == {file: file.stat().st_mtime_ns for file in before} and len(before) == 4


def test_without_scipy_the_table_has_no_intervals_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    flags = {seed: {"flags": f"--seed={seed}"} for seed in ("0", "1")}
    reached = {"val_loss": 2.0, "toy": None, "seen": 100.0, "passes": 1.0, "repeats": 1, "evaluations": [
        {"update": update, "val_loss": 2.0, "toy": None, "passes": update} for update in (0, 4)]}  # fmt: skip
    results = {"a": {seed: run | reached for seed, run in flags.items()}}
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text("seeds = [0, 1]\nreference = 'a'\n[runs]\na = ''\n")
    Path("results").mkdir()
    Path("results/a.json").write_text(json.dumps({"grid": {}, "results": results}))
    monkeypatch.setattr(compare, "SCIPY", False)
    monkeypatch.setattr(sys, "argv", ["compare", "a.toml"])
    compare.main()
    assert "no intervals: scipy is missing (pip install scipy)" in capsys.readouterr().out.splitlines()[0]
    assert compare.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 2) == "+2.00"


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
