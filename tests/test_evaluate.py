"""Scores against sums worked out one sentence at a time; the command lines of evaluate.py and sample.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NANO, ROOT, refused, run

import data
import evaluate
import sample
import tasks
from model import Config, Transformer


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
    run([f"--data={text_file}", f"--cache={cache}", *NANO], out, "--max-updates=5")
    return out


def sum_one_by_one(model, ids: list[int], start: int) -> float:
    log_p = model(torch.tensor([[59, *ids]])).log_softmax(-1)[0]
    return sum(log_p[t, ids[t]].item() for t in range(start, len(ids)))


def random_items(seed: int, count: int) -> list[list[tasks.Candidate]]:
    """Items of one to five candidates that begin alike, for some tokens or for all of the shortest."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        prefix = rng.integers(0, 3, size=rng.integers(0, 12)).tolist()
        rests = [rng.integers(0, 3, size=rng.integers(0, 9)).tolist() for _ in range(rng.integers(1, 6))]
        start = int(rng.integers(0, len(prefix) + 1))
        items.append([(prefix + rest, start if rng.random() < 0.8 else len(prefix)) for rest in rests])
    return items


def test_candidates_score_the_sum_of_what_counts_though_they_share_a_sequence(model):
    items = random_items(0, 150)
    scores = evaluate.log_probabilities(model, items, eot=59, batch_size=16)
    for candidates, some in zip(items, scores, strict=True):
        assert some == pytest.approx([sum_one_by_one(model, *candidate) for candidate in candidates], abs=1e-4)


def test_what_candidates_share_is_packed_once():
    shared, options = list(range(40)), ([41, 42], [43], [41, 44])
    tokens, positions, owners, wanted = evaluate.pack([(shared + option, 40) for option in options], eot=59)
    assert tokens == [59, *shared, 41, 41] and positions == [*range(41), 41, 41] and owners == [0] * 41 + [1, 3]
    assert wanted == [(40, 41, 1), (41, 42, 1), (40, 43, 2), (40, 41, 3), (42, 44, 3)]


def test_no_decision_depends_on_the_batch_size(model):
    items = [item for item in random_items(1, 400) if len(item) > 1]
    alone, together = (evaluate.log_probabilities(model, items, 59, batch_size) for batch_size in (1, 64))
    clear = 0
    for a, b in zip(alone, together, strict=True):
        best, second = sorted(a)[-1], sorted(a)[-2]
        if best - second > 1e-4:
            clear += 1
            assert np.argmax(a) == np.argmax(b)
    assert clear > 200


def test_ties_count_their_share_and_are_counted(model):
    likely, unlikely = sorted([[1, 2, 3], [4, 5, 6]], key=lambda ids: -sum_one_by_one(model, ids, 0))
    pairs = {"b": [[likely, unlikely], [likely, likely]], "a": [[unlikely, likely]]}
    assert evaluate.score_pairs(model, pairs, eot=59) == {
        "b": {"accuracy": 75.0, "items": 2, "ties": 1},
        "a": {"accuracy": 0.0, "items": 1, "ties": 0},
    }


def test_mean_loss_counts_only_the_targets_that_count(model):
    x, y = torch.randint(0, 59, (2, 5, 8), generator=torch.Generator().manual_seed(1)).numpy()
    y[1, 3:] = -100
    losses = model(torch.from_numpy(x), torch.from_numpy(y), reduction="none")
    expected = losses.sum().item() / (5 * 8 - 5)
    assert evaluate.mean_loss(model, x, y, batch_size=2) == pytest.approx(expected, abs=1e-5)
    assert evaluate.mean_loss(model, x[:0], y[:0]) is None


def evaluate_main(*argv) -> None:
    evaluate.main(evaluate.get_args([str(a) for a in argv]))


def results(run: Path, task: str) -> dict:
    return json.loads((run / f"eval-{task}.json").read_text())


def test_every_task_agrees_with_the_official_rule(run_folder, eval_files, tmp_path):
    """The rule written out in tests/official.py: transformers' model and tokenizer, one sentence at a time."""
    official = pytest.importorskip("tests.official", reason="needs transformers and scipy")
    model, tokenizer = official.load_export(run_folder, tmp_path / "model")
    for task in tasks.TASKS:
        if task != "toy":
            r = official.check(run_folder, eval_files, task, model, tokenizer, items=10**9)
            assert r["agreement"] == 100 and r["difference"] < 0.1, (task, r)


def test_all_tasks_that_are_there_are_scored_and_written(run_folder, eval_files, capsys):
    evaluate_main(run_folder, "--task=all", f"--data={eval_files}", "--untrained=2")
    out = capsys.readouterr().out
    names = [row["name"] for task in tasks.TASKS if task != "toy" for row in results(run_folder, task)["scores"]]
    assert len(names) == 9 and all(f"\n{name} " in out for name in names)
    assert f"mean over the zero-shot tasks {', '.join(names)}: " in out
    assert "ewok" in names and not out.startswith("not in")
    for task in tasks.TASKS:
        if task != "toy":
            records = [json.loads(line) for line in (run_folder / f"eval-{task}.jsonl").read_text().splitlines()]
            row = results(run_folder, task)["scores"][0]
            assert row["low"] <= row["score"] <= row["high"] and len(row["untrained"]) == 2
            assert len(records) >= row["items"] and all(len(record["scores"]) >= 1 for record in records)


def test_what_is_missing_is_named(run_folder, eval_files, tmp_path, capsys):
    (tmp_path / "wug_past_tense").symlink_to(eval_files / "wug_past_tense")
    evaluate_main(run_folder, "--task=all", f"--data={tmp_path}")
    out = capsys.readouterr().out
    assert out.startswith(
        f"not in {tmp_path}: blimp, blimp_supplement, ewok, entity_tracking, comps, wug_adj, reading\n"
    )
    assert "wug_past" in out.splitlines()[3]


def test_untrained_models_are_those_of_seeds_and_are_scored_once(run_folder, eval_files, monkeypatch):
    evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", "--untrained=2")
    cached = results(run_folder, "blimp")["scores"][0]["untrained"]
    model, tokenizer, config = evaluate.load_run(run_folder, torch.device("cpu"))
    records, items, _ = tasks.read("blimp", eval_files, tasks.Encoder(tokenizer))
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh = Transformer(model.config).eval()
        assert evaluate.score(fresh, "blimp", records, items, tokenizer.eot_token, 8)[0].score == cached[seed]
    made = []
    monkeypatch.setattr(evaluate, "Transformer", lambda config: made.append(config) or Transformer(config))
    evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", "--untrained=3")
    assert len(made) == 2  # the run's own, and the third untrained one
    assert results(run_folder, "blimp")["scores"][0]["untrained"][:2] == cached
    assert (Path(config["corpus"]["folder"]) / "untrained.json").exists()


def test_a_comparison_is_paired_and_counts_what_flipped(run_folder, eval_files, tmp_path, capsys):
    other = shutil.copytree(run_folder, tmp_path / "other")
    for file in other.glob("eval-*"):
        file.unlink()
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", f"--compare={other}")
    assert stopped.value.code == 2 and "score it first" in capsys.readouterr().err
    evaluate_main(other, "--task", "blimp", "reading", f"--data={eval_files}")
    lines = (other / "eval-blimp.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    for record in changed[:5]:
        record["scores"].reverse()
    (other / "eval-blimp.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    evaluate_main(run_folder, "--task", "blimp", "reading", f"--data={eval_files}", f"--compare={other}")
    compared = results(run_folder, "blimp")["scores"][0]["compared"]
    row = tasks.accuracy("blimp", changed)[0]
    assert compared["flipped"] == 5 and compared["score"] == pytest.approx(row.score)
    assert compared["low"] <= compared["difference"] <= compared["high"] and compared["low"] < compared["high"]
    same = results(run_folder, "reading")["scores"][0]["compared"]
    assert same["difference"] == same["low"] == same["high"] == 0 and same["flipped"] is None
    assert f"against {other}" in capsys.readouterr().out
    (other / "eval-blimp.jsonl").write_text("".join(line + "\n" for line in lines)[:-9])
    (eval_files / "blimp_filtered" / "b.jsonl").write_text((eval_files / "blimp_filtered" / "a.jsonl").read_text())
    with pytest.raises(SystemExit):
        evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", f"--compare={other}")
    (eval_files / "blimp_filtered" / "b.jsonl").unlink()
    assert "scored on other files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", f"--compare={other}")
    assert "are damaged" in capsys.readouterr().err


def test_toy_scores_of_a_run_are_those_it_logged(cache, tmp_path, capsys):
    """evaluate.py tokenises the pairs again, train.py takes them tokenised from the prepared folder: same numbers."""
    out = tmp_path / "run"
    _, (*_, logged) = run([f"--cache={cache}", *NANO], out, "--max-updates=2", "--eval-every=2")
    evaluate_main(out)
    row = results(out, "toy")["scores"][0]
    assert row["score"] == pytest.approx(logged["toy"]) and len(row["groups"]) >= 12
    assert {uid: group["accuracy"] for uid, group in row["groups"].items()} == pytest.approx(logged["pairs"])
    assert "accuracy   items   ties" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["out/x", "--task=blmip"], "'blmip': must be some of toy, blimp,"),
        (["out/x", "--task", "toy", "blimp"], "blimp needs --data=FOLDER"),
        (["out/x", "--untrained=-1"], "--untrained: '-1': must be a whole number of at least 0"),
        (["out/x", "--items=0"], "--items: '0': must be a whole number of at least 1"),
        (["out/x", "--batch-size=0"], "--batch-size: '0': must be a whole number of at least 1"),
        (["--task=toy"], "the following arguments are required: run"),
    ],
)
def test_wrong_flags_of_evaluate_are_one_line(tmp_path, argv, wanted):
    refused(tmp_path, ["evaluate.py", *argv], wanted)


def test_a_folder_without_any_task_is_refused(run_folder, tmp_path):
    refused(run_folder, ["evaluate.py", run_folder, "--task=all", f"--data={tmp_path}"], "no folder of any task there")


def test_folders_that_are_no_whole_run_are_refused(run_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run_folder, broken)
    config = json.loads((broken / "config.json").read_text())
    config["model"]["n_mlp"] = 32
    (broken / "config.json").write_text(json.dumps(config))
    (tmp_path / "bare").mkdir()
    shutil.copyfile(run_folder / "config.json", tmp_path / "bare" / "config.json")
    wanted = {tmp_path / "none": "no run there", broken: "other sizes", tmp_path / "bare": "no such file"}
    for folder, message in wanted.items():
        for program in ("evaluate.py", "sample.py"):
            refused(tmp_path, [program, folder], message)


def test_samples_start_with_the_prompt_and_repeat_by_seed(run_folder, capsys):
    outputs = []
    for seed in (1, 1, 2):
        sample.main(
            sample.get_parser().parse_args([str(run_folder), "--prompt=the dogs", "--samples=3", f"--seed={seed}"])
        )
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


@pytest.mark.parametrize("words", ["evaluate.py out/x --task=nonsense", "sample.py out/x --top-k=0"])
def test_wrong_flags_are_said_before_the_slow_import_of_torch(words):
    command = [sys.executable, "-X", "importtime", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2 and "argparse" in imported and "torch" not in imported


def test_tokenizer_of_a_run_decodes_what_it_encodes(run_folder):
    tokenizer = data.load_tokenizer(run_folder / "tokenizer.json")
    text = "the dogs\tchase\n  naïve 🐘 cats"
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
