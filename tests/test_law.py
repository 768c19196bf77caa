"""tools/law.py: curves made by the formulas are recovered, others predicted; what is refused, and how."""

import json
import shutil

import numpy as np
import pytest

import train
from experiments import law as experiment
from flags import get_args as train_args
from tools import law

ANNEALING = {"L0": 2.4, "A": 0.12, "C": 1.2, "a": 1.1}
SHIFT = {"L0": 2.4, "A": 0.12, "C": 1.2, "C2": 1.2, "B": 0.6, "a": 1.1, "E": 40.0, "b": 0.6}


def curve(schedule: str, values: dict, budget: int = 400, shift: int | None = None, noise: float = 0.0, seed: int = 0):
    """A run by the law itself, its points each with an error of that standard deviation (nats)."""
    like = law.Curve("", np.array([2e-3]), np.array([]), np.array([]))
    run = law.imagined(like, 20, schedule, budget, 0.0, shift).between(budget // 5, budget)
    losses = law.Law(0.98, values, 0).at(run, run.updates)
    return run._replace(losses=losses + np.random.default_rng(seed).normal(0, noise, len(losses)))


def test_the_areas_are_those_of_the_formula():
    run = curve("wsd", ANNEALING, budget=50)
    S1, S2, m, rates = 0.0, 0.0, 0.0, run.rates
    for s in range(50):
        m = 0.9 * m + (rates[max(s - 1, 0)] - rates[s])
        S1, S2 = S1 + rates[s], S2 + m
    np.testing.assert_allclose(law.areas(run, np.array([50]), 0.9)[:, 0], [S1, S2, 0, 0])
    x = law.areas(run._replace(shift=45), np.array([45, 50]), 0.9)
    np.testing.assert_allclose(x[1] + x[2], law.areas(run, np.array([45, 50]), 0.9)[1])
    assert x[3, 0] == 0 and x[3, 1] == pytest.approx(rates[45:].sum())


def test_the_warm_up_counts_at_the_peak():
    assert law.at_peak(np.array([1.0, 2.0, 3.0, 3.0, 2.0])).tolist() == [3, 3, 3, 3, 2]


def test_annealing_is_recovered_from_noisy_curves_and_predicts_another_schedule():
    fitted = [curve("constant", ANNEALING, noise=3e-3, seed=1), curve("cosine", ANNEALING, noise=3e-3, seed=2)]
    found = law.fit(fitted)
    assert found.lam in (0.95, 0.98, 0.99)
    found = law.fit(fitted, 0.98)
    for name, value in ANNEALING.items():
        assert found.values[name] == pytest.approx(value, rel=0.15), name
    true = curve("wsd", ANNEALING)
    mean, r2, end = law.errors(found.at(true, true.updates), true)
    assert mean < 2e-3 and r2 > 0.999 and abs(end) < 4e-3
    simple = law.errors(law.naive(fitted, true), true)
    assert simple[0] > 4 * mean and simple[2] > 0.02  # a constant rate never anneals


def test_a_shift_is_recovered_and_another_time_of_it_predicted():
    for B in (0.6, -0.5):
        values = SHIFT | {"B": B}
        fitted = [curve("constant", values, shift=shift, noise=3e-3, seed=shift) for shift in (100, 250)]
        found = law.fit(fitted)
        for name in ("L0", "B", "a"):
            assert found.values[name] == pytest.approx(values[name], rel=0.25), name
        true = curve("constant", values, shift=180)
        mean, r2, _ = law.errors(found.at(true, true.updates), true)
        assert mean < 4e-3 and r2 > 0.995
        assert law.errors(law.naive(fitted, true), true)[0] > 2 * mean


def test_without_annealing_C_is_zero_and_lambda_does_not_matter():
    run = curve("constant", ANNEALING)
    found, other = law.fit([run]), law.fit([run], 0.5)
    assert found.values["C"] == 0 and found.values == other.values


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"^4 points for the 4 parameters of the law; evaluate more often"):
        law.fit([curve("constant", ANNEALING).between(361, 400)])


# --- Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted(flags, tmp_path_factory):
    """A run of a second or two whose text shifts, evaluated often, its weights kept."""
    out = tmp_path_factory.mktemp("runs") / "shifted"
    words = ["--mode=random", "--order=shift", "--epochs=1", "--eval-every=2", "--keep-weights=evaluations"]
    assert train.main(train_args([*flags, *words, f"--out={out}"])) == 0
    return out


def main(*words) -> None:
    law.main(law.get_args([*map(str, words)]))


def test_runs_are_read_measured_in_parts_fitted_predicted_and_drawn(shifted, tmp_path, capsys):
    run, _ = law.read_run(shifted)
    records = [json.loads(line) for line in (shifted / "metrics.jsonl").read_text().splitlines()]
    assert run.losses.tolist() == [record["val_loss"] for record in records if "val_loss" in record]
    assert np.ptp(run.rates) == 0 and len(run.rates) == sum("loss" in record for record in records)
    with pytest.raises(ValueError, match="its two parts are not measured; run python -m tools.law parts"):
        main("fit", shifted, "--part=old")
    main("parts", shifted)
    parts = json.loads((shifted / "parts.json").read_text())
    assert 0.3 < parts["shift"] / len(run.rates) < 0.7
    whole = dict(zip(run.updates.tolist(), run.losses, strict=True))
    for update, old, new in zip(*(parts[key] for key in ("updates", "old", "new")), strict=True):
        assert min(old, new) < whole[update] < max(old, new)  # the loss on all of it lies between
    figure = tmp_path / "law.png"
    main("fit", shifted, "--predict", shifted, "--schedule=wsd", "--budget=50", f"--figure={figure}")
    printed = capsys.readouterr().out
    assert "no fitted run's rate falls" in printed and f"{shifted} (predicted)" in printed
    assert "wsd, 50 updates (predicted):" in printed and figure.stat().st_size > 5000


@pytest.mark.parametrize(("what", "wanted"), [
    ("text", "has another text than"), ("model", "has another model than"), ("diverged", "has diverged"),
    ("held-out", "has no held-out losses"),
])  # fmt: skip
def test_runs_that_fit_no_law_are_refused_in_one_line(what, wanted, shifted, tmp_path):
    other = shutil.copytree(shifted, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    records = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    if what == "text":
        config["corpus"]["files"]["tokens.bin"] = "another"
    if what == "model":
        config["model"]["n_layer"] += 1
    for record in records:
        if "val_loss" in record and what == "held-out":
            record["val_loss"] = None
    if what == "diverged":
        records[-1 if "loss" in records[-1] else -2]["loss"] = None
    (other / "config.json").write_text(json.dumps(config))
    (other / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match=wanted) as error:
        main("fit", shifted, other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("wrong", "wanted"), [
    (["fit", "x", "--schedule=wsd"], "needs --budget"), (["fit", "x", "--figure=a.txt"], "must end in .png or .svg"),
    (["fit", "x", "--lambda=1"], "must be a number of at least 0 and at most 0.99999"),
])  # fmt: skip
def test_wrong_flags_are_answered_in_one_line(wrong, wanted, capsys):
    with pytest.raises(SystemExit, match="2"):
        law.get_args(wrong)
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1


def test_runs_that_are_gone_are_taken_from_the_record_with_the_rates_of_their_flags():
    runs = experiment.made("law")["wsd, 3 passes"]
    assert runs and all(len(run.rates) == run.updates[-1] == 231 for run in runs)
    assert runs[0].rates[:150].tolist() == [2e-3] * 150 and 0 < runs[0].rates[-1] < 1e-4  # wsd: the last fifth falls
    one = curve("constant", {"L0": 2.0, "A": 1.0, "C": 0.0, "a": 0.5})
    other = one._replace(updates=one.updates[::2], losses=one.losses[::2] + 1)
    mean = experiment.mean_of([one, other])
    assert mean.updates.tolist() == other.updates.tolist()
    assert mean.losses == pytest.approx(other.losses - 0.5)
