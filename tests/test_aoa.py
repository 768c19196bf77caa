"""Age of acquisition on made-up words and children, beside the rule written out in tests/official.py."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import NANO, run

import checkpoint
import evaluate
from tools import aoa

pytest.importorskip("scipy")


def sigmoid(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    return a / (1 + np.exp(-b * (x - c))) + d


def test_children_know_a_word_when_half_of_them_do():
    shares = {age: float(sigmoid(age, 0.9, 0.6, 22, 0.05)) for age in range(16, 31)}
    assert aoa.child_age(shares) == pytest.approx(22, abs=0.05)
    assert aoa.child_age({age: 0.3 + age / 1000 for age in range(16, 31)}) is None  # never half of them
    assert aoa.child_age({16: 0.2, 30: 0.9}) is None


def test_a_model_knows_a_word_half_way_from_a_guess_to_its_lowest_surprisal():
    seen = np.array([*range(1, 10), *range(10, 101, 10)]) * 1e6
    surprisal = -sigmoid(np.log10(seen), 6, 5, 7.2, -10)  # from 10 nats to 4
    age = aoa.model_age(seen, surprisal, 10)
    assert sigmoid(age, 6, 5, 7.2, -10) == pytest.approx(-(10 + surprisal.min()) / 2, abs=1e-3)
    assert aoa.model_age(seen, surprisal, 30) is None  # already below at the first
    assert aoa.model_age(seen, np.where(seen > 2e6, np.nan, surprisal), 10) is None
    surprisal[3] = np.nan  # does not count
    assert aoa.model_age(seen, surprisal, 10) == pytest.approx(age, abs=1e-3)


def test_a_correlation_that_may_be_chance_is_none():
    ages = np.random.default_rng(0).normal(20, 3, (30, 2))
    alike = [{"child": child, "model": child / 3 + other / 30} for child, other in ages]
    none = {"child": None, "model": 7.0}
    assert aoa.correlation([*alike, none]).score > 95 and len(aoa.correlation([*alike, none]).strata) == 30
    few = [{"child": child, "model": model} for child, model in zip(range(16, 21), (2, 4, 1, 3, 5), strict=True)]
    assert aoa.correlation(few).score == 0  # r is 0.5, and p 0.39
    assert aoa.correlation(few * 4).score == pytest.approx(50)


def test_weights_kept_by_words_count_as_the_words_that_name_them():
    flags = {"keep_weights": "babylm", "batch_size": 8, "block_size": 512}
    config = {"flags": flags, "corpus": {"n_words": 9_500_000, "n_tokens": 13_000_000}}
    each = 8 * 512 * 9.5 / 13
    assert [aoa.words_seen(config, math.ceil(words / each)) for words in (1e6, 3e7)] == [1e6, 3e7]
    assert aoa.words_seen(config, math.ceil(9.5e7 / each)) == 1e8  # an end that stands for the last
    assert aoa.words_seen(config | {"flags": flags | {"keep_weights": "evaluations"}}, 7) == pytest.approx(7 * each)


@pytest.fixture(scope="module")
def kept_run(text_file, cache, tmp_path_factory):
    """A run with weights of three updates, to which three are added that make all surprisals fall."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run([f"--data={text_file}", f"--cache={cache}", *NANO], out, "--max-updates=3", "--eval-every=1",
        "--keep-weights=evaluations")  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    (_, file), *_ = checkpoint.kept_weights(out)
    state = checkpoint.load(file)
    noise = {name: torch.randn(weight.shape, generator=rng) for name, weight in state["model"].items()}
    for i, update in enumerate((10, 100, 1000)):
        state["model"] = {name: w + 0.05 * (i + 1) * noise[name] for name, w in state["model"].items()}
        checkpoint.save(out / f"weights-{update}.pt", state)
    return out


@pytest.fixture
def made_up(tmp_path, text_file):
    """Words with contexts from the text, and children that learn them one after the other."""
    (tmp_path / "EVAL" / "aoa").mkdir(parents=True)
    lines = [line.split() for line in text_file.read_text().splitlines() if len(line.split()) > 3]
    contexts = {}
    for line in lines[:60]:
        contexts.setdefault(line[2], []).append({"context": " ".join(line[:2])})
    contexts["a"] = [{"context": "too short a word"}]
    (tmp_path / "EVAL" / "aoa" / aoa.WORDS).write_text(json.dumps(contexts))
    rows = ["word," + ",".join(map(str, range(16, 31)))]
    for i, word in enumerate(contexts):
        shares = sigmoid(np.arange(16, 31), 0.95, 0.7, 18 + i % 11, 0.01)
        rows.append(f"{word}," + ",".join(f"{share:.3f}" for share in shares))
    (tmp_path / "EVAL" / "aoa" / aoa.CHILDREN).write_text("\n".join(rows) + "\n")
    return tmp_path / "EVAL"


def test_surprisals_and_ages_agree_with_the_official_rule(kept_run, made_up, tmp_path):
    official = pytest.importorskip("tests.official", reason="needs transformers")
    row = aoa.score(kept_run, made_up, "cpu", 16)
    exported, tokenizer = official.load_export(kept_run, tmp_path / "model")
    models = {}
    _, _, config = evaluate.load_run(kept_run, torch.device("cpu"))
    for update, file in checkpoint.kept_weights(kept_run):
        ours, _, _ = evaluate.load_run(kept_run, torch.device("cpu"))
        checkpoint.fill(ours, checkpoint.load(file)["model"], file)
        models[aoa.words_seen(config, update)] = Same(ours)
    expected, told = official.score_aoa(models, tokenizer, made_up / "aoa")
    records = [json.loads(line) for line in (kept_run / "eval-aoa.jsonl").read_text().splitlines()]
    assert [record["word"] for record in records] == [*told] and "a" not in told
    for record in records:
        child, model, curve = told[record["word"]]
        assert record["surprisal"] == pytest.approx(curve, abs=1e-3)
        assert record["child"] == pytest.approx(child, abs=1e-3)
        assert (record["model"] is None) == (model is None)
        assert model is None or record["model"] == pytest.approx(model, abs=1e-2)
    assert row["score"] == pytest.approx(expected, abs=0.5) and row["items"] > 2
    result = json.loads((kept_run / "eval-aoa.json").read_text())
    assert result["update"] == 3 and len(result["digest"]) == 16 and result["scores"] == [row]


class Same:
    """A model of ours with the interface of transformers'."""

    def __init__(self, model):
        self.model = model

    def __call__(self, ids):
        return type("Output", (), {"logits": self.model(ids)})


def refused(monkeypatch, capsys, *argv) -> str:
    monkeypatch.setattr(sys, "argv", ["tools.aoa", *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        aoa.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


def test_what_is_missing_or_wrong_is_one_line(kept_run, made_up, monkeypatch, capsys, tmp_path):
    start = monkeypatch, capsys, kept_run, "--device=cpu"
    assert "no cdi_childes.json in it or in its folder aoa; the challenge has" in refused(*start, f"--data={tmp_path}")
    (made_up / "aoa" / aoa.CHILDREN).write_bytes(b"word,16\nx,\xff\n")
    assert "cdi_human.csv: not as the challenge has it ('utf-8' codec" in refused(*start, f"--data={made_up}")
    (made_up / "aoa" / aoa.WORDS).write_text('{"dog": [{"context": 3}]}')
    assert "cdi_childes.json: not as the challenge has it (no 'context'" in refused(*start, f"--data={made_up}")
    monkeypatch.setattr(checkpoint, "kept_weights", lambda run: [])
    error = refused(*start, f"--data={made_up}")
    assert "weights of 0 updates were kept, and a curve needs 3; train with --checkpoints=babylm" in error
