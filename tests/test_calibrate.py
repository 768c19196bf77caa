"""The calibration of the built-in corpus: its trainings."""

import json
from pathlib import Path

from tools import calibrate


def test_a_training_that_was_stopped_goes_on(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [f"--cache={cache}", "--preset=nano", "--device=cpu", "--eval-every=1"]
    calibrate.trained_scores(0, *flags, "--max-updates=2")
    quarter, end = calibrate.trained_scores(0, *flags, "--max-updates=4")
    records = [json.loads(line) for line in Path("out/calibrate/random-s0/metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in records if "loss" in record] == [1, 2, 3, 4]
    pairs = {record["update"]: record["pairs"] for record in records if "val_loss" in record}
    assert quarter == pairs[1] and end == pairs[4] and quarter != end
