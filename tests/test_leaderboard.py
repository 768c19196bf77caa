"""The nine columns: of rows that are all there, by the rules of 2026, of the weights that the run has now."""

import json
import shutil

import pytest
import torch
from conftest import NANO, refused, run

import checkpoint
import evaluate
from tools import leaderboard


@pytest.fixture(scope="module")
def scored(text_file, cache, tmp_path_factory):
    """A run of two updates with results in the form of evaluate.py, whatever their numbers."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run([f"--data={text_file}", f"--cache={cache}", *NANO], out, "--max-updates=2")
    digest = evaluate.digest_of(evaluate.load_run(out, torch.device("cpu"))[0])
    rows = {"blimp": [60], "reading": [2, 4], "global_piqa_parallel": [25], "aoa": [10], "toy": [50], "ewok-2025": [50]}
    for task, scores in rows.items():
        names = ("reading_eye_tracking", "reading_self_paced") if len(scores) > 1 else (task,)
        result = {"rules": "2025" if "2025" in task else "2026", "weights": "last", "digest": digest, "files": "0"}
        result["scores"] = [{"name": name, "score": score} for name, score in zip(names, scores, strict=True)]
        (out / f"eval-{task}.json").write_text(json.dumps(result))
    return out


def test_a_column_is_the_mean_of_its_rows_or_missing(scored):
    scores, unused = leaderboard.known_scores(scored, "last")
    found = leaderboard.columns(scores)
    assert len(found) == 9 and not unused and "ewok-2025" not in scores
    there = {name: score for name, score in found.items() if score is not None}
    assert there == {"BLiMP": 60, "reading": 3, "AoA": 10}  # Global PIQA lacks one of its two rows


def test_what_is_missing_counts_0_and_is_named(scored, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tools.leaderboard", str(scored), "--glue=53"])
    leaderboard.main()
    out = capsys.readouterr().out
    assert f"overall           {(60 + 3 + 10 + 53) / 9:7.2f}   what is missing counts 0" in out
    assert f"{(60 + 3 + 10 + 53) / 4:7.2f}   the mean over the 4 that are there" in out
    assert out.count("missing\n") == 5 and "EWoK              missing" in out


def test_scores_of_other_weights_are_named_and_not_used(scored, tmp_path):
    newer = shutil.copytree(scored, tmp_path / "newer")
    state = checkpoint.load(newer / checkpoint.NAME)
    state["model"]["model.norm.weight"] *= 2
    checkpoint.save(newer / checkpoint.NAME, state)
    scores, unused = leaderboard.known_scores(newer, "last")
    assert not scores and len(unused) == 5


def test_scores_of_some_items_are_named_and_not_used(scored, tmp_path):
    part = shutil.copytree(scored, tmp_path / "part")
    file = part / "eval-blimp.json"
    file.write_text(file.read_text().replace('"files": "0"', '"files": "0/7"'))
    scores, unused = leaderboard.known_scores(part, "last")
    assert "blimp" not in scores and "aoa" in scores and unused == ["eval-blimp.json"]


def test_a_damaged_result_is_one_line(scored, tmp_path):
    damaged = shutil.copytree(scored, tmp_path / "damaged")
    (damaged / "eval-blimp.json").write_text('{"weights": "last", "rules": "2026"}')
    refused(damaged, ["tools/leaderboard.py", damaged], "eval-blimp.json: damaged")
