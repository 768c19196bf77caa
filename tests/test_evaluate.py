"""Scores against sums worked out one sentence at a time; the command lines of evaluate.py and sample.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import sample
import toy
import train
from model import Config, Transformer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(Config(n_layer=2, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=60))
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.3 * torch.randn_like(w))
    return model.eval()


@pytest.fixture(scope="module")
def run_folder(text_file, cache, tmp_path_factory):
    """A run of a few updates."""
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = [f"--data={text_file}", f"--cache={cache}", "--vocab-size=400", "--device=cpu", "--n-layer=1",
             "--n-embd=16", "--n-head=2", "--n-kv-head=1", "--n-mlp=24", "--block-size=16", "--batch-size=16",
             "--max-updates=5", "--lr=0.01"]  # fmt: skip
    assert train.main(train.get_args([*flags, f"--out={out}"])) == 0
    return out


def test_a_sentence_scores_the_sum_of_its_tokens_log_probabilities(model):
    rng = np.random.default_rng(0)
    sentences = [rng.integers(0, 59, size=n).tolist() for n in rng.integers(1, 30, size=70)] + [[]]
    scores = evaluate.log_probabilities(model, sentences, eot=59, batch_size=16)
    for ids, score in zip(sentences, scores, strict=True):
        log_p = model(torch.tensor([[59, *ids]])).log_softmax(-1)[0]
        assert score == pytest.approx(sum(log_p[t, token].item() for t, token in enumerate(ids)), abs=1e-3)
    one_by_one = evaluate.log_probabilities(model, sentences, eot=59, batch_size=1)
    np.testing.assert_allclose(one_by_one, scores, atol=1e-4)


def test_a_tie_counts_one_half_and_is_counted(model):
    likely, unlikely = sorted([[1, 2, 3], [4, 5, 6]], key=lambda s: -evaluate.log_probabilities(model, [s], 59)[0])
    pairs = {"a": [[likely, unlikely], [likely, likely]], "b": [[unlikely, likely]]}
    assert evaluate.score_pairs(model, pairs, eot=59) == {
        "a": {"accuracy": 75.0, "pairs": 2, "ties": 1},
        "b": {"accuracy": 0.0, "pairs": 1, "ties": 0},
    }


def test_mean_loss_counts_only_the_targets_that_count(model):
    x, y = torch.randint(0, 59, (2, 5, 8), generator=torch.Generator().manual_seed(1)).numpy()
    y[1, 3:] = -100
    losses = model(torch.from_numpy(x), torch.from_numpy(y), reduction="none")
    expected = losses.sum().item() / (5 * 8 - 5)
    assert evaluate.mean_loss(model, x, y, batch_size=2) == pytest.approx(expected, abs=1e-5)
    assert evaluate.mean_loss(model, x[:0], y[:0]) is None


def blimp_folder(tmp_path) -> Path:
    folder = tmp_path / "blimp"
    folder.mkdir()
    for uid, pairs in list(toy.minimal_pairs().items())[:3]:
        lines = [
            json.dumps({"sentence_good": p["sentence_good"], "sentence_bad": p["sentence_bad"]}) for p in pairs[:9]
        ]
        (folder / f"{uid}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def evaluate_main(*argv) -> None:
    evaluate.main(evaluate.get_args([str(a) for a in argv]))


def test_blimp_files_are_scored_by_paradigm_and_written_as_json(run_folder, tmp_path, capsys):
    folder = blimp_folder(tmp_path)
    evaluate_main(run_folder, "--task=blimp", f"--data={folder}")
    table = capsys.readouterr().out
    result = json.loads((run_folder / "eval-blimp.json").read_text())
    assert set(result["paradigms"]) == {file.stem for file in folder.iterdir()}
    assert result["mean"] == pytest.approx(np.mean([p["accuracy"] for p in result["paradigms"].values()]))
    assert " ".join(table.split()).count(f"mean of 3 paradigms {result['mean']:.1f} % 27") == 1
    evaluate_main(run_folder, "--task=blimp", f"--data={folder}", f"--json={tmp_path / 'other.json'}")
    assert json.loads((tmp_path / "other.json").read_text())["paradigms"] == result["paradigms"]


def test_toy_scores_of_a_run_are_those_it_logged(cache, tmp_path, capsys):
    """evaluate.py tokenises the pairs again, train.py takes them tokenised from the prepared folder: same numbers."""
    out = tmp_path / "run"
    flags = [
        f"--cache={cache}",
        "--device=cpu",
        "--n-layer=1",
        "--n-embd=16",
        "--n-head=2",
        "--n-kv-head=1",
        "--n-mlp=24",
    ]
    assert train.main(train.get_args([*flags, "--max-updates=2", "--eval-every=2", f"--out={out}"])) == 0
    logged = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    evaluate_main(out)
    result = json.loads((out / "eval-toy.json").read_text())
    assert result["mean"] == pytest.approx(logged["toy"]) and len(result["paradigms"]) >= 12
    assert {uid: p["accuracy"] for uid, p in result["paradigms"].items()} == pytest.approx(logged["pairs"])


def test_real_blimp_is_read_in_whole(shared):
    paradigms = evaluate.read_pairs(shared / "eval" / "blimp")
    assert len(paradigms) == 67 and {len(pairs) for pairs in paradigms.values()} == {1000}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a"}\n', "line 2: not a JSON object with"),
        (
            '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a", "sente',
            "line 2: not a JSON object with",
        ),
        ('{"sentence_good": "a", "sentence_bad": 3}\n', "line 1: not a JSON object with"),
        ("", "empty"),
        (None, "no *.jsonl file there"),
    ],
)
def test_bad_files_are_named_with_their_line(run_folder, tmp_path, capsys, content, wanted):
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(run_folder, "--task=blimp", f"--data={tmp_path}")
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and wanted in err


def test_folders_that_are_no_whole_run_are_refused(run_folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(run_folder, broken)
    config = json.loads((broken / "config.json").read_text())
    config["model"]["n_mlp"] = 32
    (broken / "config.json").write_text(json.dumps(config))
    (tmp_path / "bare").mkdir()
    shutil.copyfile(run_folder / "config.json", tmp_path / "bare" / "config.json")
    wanted = {tmp_path / "none": "no run there", broken: "other sizes", tmp_path / "bare": "no such file"}
    for folder, message in wanted.items():
        for main in (evaluate_main, lambda run: sample.main(sample.get_args([str(run)]))):
            with pytest.raises(SystemExit) as stopped:
                main(folder)
            err = capsys.readouterr().err
            assert stopped.value.code == 2 and err.count("\n") == 1 and message in err


def test_samples_start_with_the_prompt_and_repeat_by_seed(run_folder, capsys):
    outputs = []
    for seed in (1, 1, 2):
        sample.main(sample.get_args([str(run_folder), "--prompt=the dogs", "--samples=3", f"--seed={seed}"]))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2] and outputs[0].count("the dogs") >= 3


def test_temperature_zero_takes_the_likeliest_token(model):
    start = [59, 1, 2]
    new = sample.generate(model, start, max_tokens=6, temperature=0, top_k=50, eot=59, seed=0)
    for i, token in enumerate(new):
        assert token == model(torch.tensor([start + new[:i]]))[0, -1].argmax().item()


@pytest.mark.parametrize("flag", ["--samples=0", "--temperature=nan", "--top-k=-1", "--task=glue", "--task=blimp"])
def test_wrong_flags_are_one_line(flag):
    program = "evaluate.py" if "task" in flag else "sample.py"
    done = subprocess.run([sys.executable, program, "out/x", flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and flag.split("=")[0] in done.stderr


def test_tokenizer_of_a_run_decodes_what_it_encodes(run_folder):
    tokenizer = data.load_tokenizer(run_folder / "tokenizer.json")
    text = "the dogs\tchase\n  naïve 🐘 cats"
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
