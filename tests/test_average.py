"""tools/average.py: the mean of kept weights, of real runs: by hand, after interruptions, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import evaluate
import flags
import train
from tools import average

SIZES = "--n-layer=1 --n-embd=16 --n-head=2 --n-kv-head=1 --n-mlp=24 --block-size=16 --batch-size=16".split()
KEPT = ["--mode=bcp", "--goal=6.5", "--lr=0.01", "--eval-every=4", "--keep-weights=evaluations", "--save-every=3"]


@pytest.fixture(scope="module")
def started(cache):
    """Train in a folder, with these further flags."""

    def start(out: Path, *more: str) -> Path:
        args = flags.get_args([*SIZES, *KEPT, f"--cache={cache}", "--device=cpu", f"--out={out}", *more])
        assert train.main(args) == 0
        return out

    return start


@pytest.fixture(scope="module")
def whole(started, tmp_path_factory) -> Path:
    """A run of 14 updates: evaluated after updates 0, 4, 8 and 12, and at its end."""
    return started(tmp_path_factory.mktemp("runs") / "whole", "--max-updates=14")


def main(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["average", *map(str, words)])
    average.main()


def refused(monkeypatch, capsys, *words) -> str:
    """The one line with which it ends, exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(monkeypatch, *words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1
    return err


def weights(file: Path) -> dict:
    return checkpoint.load(file)["model"]


def test_the_mean_is_that_of_the_last_evaluations_and_is_scored(whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    capsys.readouterr()
    main(monkeypatch, run, "--last=3")
    told = capsys.readouterr().out
    mean, kept = weights(run / "average.pt"), [weights(run / f"weights-{update}.pt") for update in (8, 12, 14)]
    for name, w in mean.items():
        torch.testing.assert_close(w, (kept[0][name] + kept[1][name] + kept[2][name]) / 3)
    assert not torch.equal(mean["model.norm.weight"], kept[-1]["model.norm.weight"])
    result = json.loads((run / "average.json").read_text())
    assert result["updates"] == [8, 12, 14] and "at updates 8, 12, 14: " in told
    assert f"validation loss {result['val_loss']:.3f}, minimal pairs {result['toy']:.1f} %" in told
    assert result["toy"] == pytest.approx(sum(result["pairs"].values()) / len(result["pairs"]))

    main(monkeypatch, run, "--last=1")  # the weights at the end, and so the scores at the end
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    result = json.loads((run / "average.json").read_text())
    assert result == {"updates": [14], **{name: last[name] for name in ("val_loss", "toy", "pairs")}}


def test_evaluate_reads_the_average(whole, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")
    main(monkeypatch, run, "--last=2")
    model, _, _ = evaluate.load_run(run, torch.device("cpu"), "average")
    assert torch.equal(model.model.norm.weight, weights(run / "average.pt")["model.norm.weight"])
    evaluate.main(evaluate.get_args([str(run), "--weights=average", "--device=cpu"]))
    scores = json.loads((run / "eval-toy-average.json").read_text())["scores"]
    assert scores[0]["score"] == pytest.approx(json.loads((run / "average.json").read_text())["toy"])


@pytest.mark.parametrize("stops", [(8,), (5, 10), (13,)])
def test_the_mean_is_the_same_however_the_run_was_interrupted(started, whole, tmp_path, monkeypatch, stops):
    run = started(tmp_path / "parts", f"--max-updates={stops[0]}")
    for stop in (*stops[1:], 14):
        started(run, "--resume", f"--max-updates={stop}")
    assert [at for at, _ in checkpoint.kept_weights(run)] == [4, 8, 12, 14]  # none of where it was stopped
    shutil.copytree(whole, tmp_path / "whole")
    for folder in (run, tmp_path / "whole"):
        main(monkeypatch, folder, "--last=4")
    for file in ("average.pt", "average.json"):
        assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_wrong_use_is_one_line_and_writes_nothing(whole, started, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    capsys.readouterr()
    assert "--last=5: weights of 4 updates are kept" in refused(monkeypatch, capsys, run, "--last=5")
    assert "--last: '0': must be a whole number of at least 1" in refused(monkeypatch, capsys, run, "--last=0")
    assert "no run there" in refused(monkeypatch, capsys, tmp_path / "nowhere", "--last=1")
    file = run / "weights-12.pt"
    file.write_bytes(file.read_bytes()[:-20])
    assert "weights-12.pt: damaged" in refused(monkeypatch, capsys, run, "--last=2")
    config = json.loads((run / "config.json").read_text())
    config["corpus"]["folder"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert "gone" in refused(monkeypatch, capsys, run, "--last=1")
    assert not list(run.glob("average.*"))


def test_weights_of_another_run_among_the_kept_ones_are_named(whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "weights-notes.pt").write_text("mine")
    checkpoint.save(run / "weights-12.pt", {"model": {"model.norm.weight": torch.zeros(3)}})
    capsys.readouterr()
    assert "weights-12.pt: a checkpoint of other sizes" in refused(monkeypatch, capsys, run, "--last=2")
