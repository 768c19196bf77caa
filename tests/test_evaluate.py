"""Scores against sums worked out one sentence at a time; the command lines of evaluate.py and sample.py."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NANO, ROOT, refused, run

import checkpoint
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
    for rules in ("2026", "2025"):
        for task in tasks.TASKS:
            if task != "toy" and rules in tasks.TASKS[task].rules and (rules == "2026" or differs(task)):
                r = official.check(run_folder, eval_files, task, model, tokenizer, 10**9, rules)
                assert r["agreement"] == 100 and r["difference"] < 1e-3, (rules, task, r)


def differs(task: str) -> bool:
    """Whether the rules of 2025 are others."""
    return tasks.TASKS[task].older is not None or "2026" not in tasks.TASKS[task].rules


def test_real_files_agree_with_the_official_rules_of_both_years(run_folder, shared, tmp_path):
    official = pytest.importorskip("tests.official", reason="needs transformers and scipy")
    model, tokenizer = official.load_export(run_folder, tmp_path / "model")
    new = [("blimp", 67, "2026"), ("blimp_supplement", 20, "2026"), ("entity_tracking", 30, "2026")]
    old = [("entity_tracking", 30, "2025"), ("wug_adj", 20, "2025"), ("wug_past", 20, "2025")]
    for task, items, rules in new + old:
        r = official.check(run_folder, shared / "eval", task, model, tokenizer, items, rules)
        assert r["agreement"] == 100 and r["difference"] < 1e-3, (rules, task, r)


def test_of_candidates_that_tie_or_are_no_numbers_each_rule_has_its_expectation():
    official = pytest.importorskip("tests.official", reason="needs transformers and scipy")
    for scores in ([-1, -1, -2], [-2, -1, -1], [math.nan, -1, -2], [math.nan] * 4):
        ours = [-math.inf if math.isnan(score) else score for score in scores]
        expected = 100 * official.credit(scores, 0, "2026")
        assert tasks.accuracy("blimp", [{"group": "g", "scores": ours}])[0].score == pytest.approx(expected)
    assert [official.credit([-1, -1], label, "2025") for label in (0, 1)] == [1, 0]


@pytest.mark.parametrize(("rules", "mark", "count"), [("2026", "", 9), ("2025", "-2025", 9)])
def test_all_tasks_of_the_year_that_are_there_are_scored_and_written(
    run_folder, eval_files, capsys, rules, mark, count
):
    evaluate_main(run_folder, f"--data={eval_files}", "--untrained=2", f"--rules={rules}")
    out = capsys.readouterr().out
    of_year = [task for task in tasks.TASKS if task != "toy" and rules in tasks.TASKS[task].rules]
    names = [row["name"] for task in of_year for row in results(run_folder, task + mark)["scores"]]
    assert len(names) == count and all(f"\n{name} " in out for name in names)
    assert "ewok" in names and not out.startswith("not in") and f"\nrules of {rules} " in out
    for task in of_year:
        records = [json.loads(line) for line in (run_folder / f"eval-{task}{mark}.jsonl").read_text().splitlines()]
        result = results(run_folder, task + mark)
        row = result["scores"][0]
        assert result["rules"] == row["rules"] == rules and result["update"] == 5 and len(result["digest"]) == 16
        assert row["low"] <= row["score"] <= row["high"] and len(row["untrained"]) == 2
        assert len(records) >= row["items"] and all(len(record["scores"]) >= 1 for record in records)


def test_what_is_missing_is_named(run_folder, eval_files, tmp_path, capsys):
    (tmp_path / "full_eval").mkdir()
    (tmp_path / "full_eval" / "comps").symlink_to(eval_files / "comps")
    (tmp_path / "supplement_fast").symlink_to(eval_files / "blimp_supplement")
    evaluate_main(run_folder, "--task=all", f"--data={tmp_path}")
    out = capsys.readouterr().out
    missing = "blimp, ewok, entity_tracking, global_piqa_parallel, global_piqa_nonparallel, reading"
    assert out.startswith(f"not in {tmp_path}: {missing}\n")
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["blimp_supplement", "comps"]


def test_untrained_models_are_those_of_seeds_and_are_scored_once(run_folder, eval_files, monkeypatch):
    evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", "--untrained=2")
    cached = results(run_folder, "blimp")["scores"][0]["untrained"]
    model, tokenizer, config = evaluate.load_run(run_folder, torch.device("cpu"))
    records, items, _ = tasks.read("blimp", eval_files, tasks.Encoder(tokenizer))
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh = Transformer(model.config).eval()
        assert evaluate.score(fresh, "blimp", records, items, 8)[0].score == cached[seed]
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
    assert "its score of blimp is of other files; score it first" in capsys.readouterr().err
    other_digest = json.loads((other / "eval-blimp.json").read_text())["digest"]
    spoil(other / "eval-blimp.json", other_digest, "0" * 16)
    with pytest.raises(SystemExit):
        evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", f"--compare={other}")
    assert "its score of blimp is of other weights; score it first" in capsys.readouterr().err
    spoil(other / "eval-blimp.json", "0" * 16, other_digest)
    with pytest.raises(SystemExit):
        evaluate_main(run_folder, "--task=blimp", f"--data={eval_files}", f"--compare={other}")
    assert "are damaged" in capsys.readouterr().err


def spoil(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_other_weights_have_another_digest(model):
    before = evaluate.digest_of(model)
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
        changed = evaluate.digest_of(model)
        model.model.norm.weight[3] -= 1e-6
    assert len({before, changed}) == 2 and evaluate.digest_of(model) == before


def with_weights(run: Path, folder: Path, change) -> Path:
    """A copy of a run whose weights were changed."""
    copy = shutil.copytree(run, folder)
    state = checkpoint.load(copy / checkpoint.NAME)
    with torch.no_grad():
        change(state["model"])
    checkpoint.save(copy / checkpoint.NAME, state)
    return copy


def test_weights_that_are_no_numbers_have_no_score_and_the_others_keep_theirs(run_folder, eval_files, tmp_path, capsys):
    broken = with_weights(run_folder, tmp_path / "run", lambda w: w["model.norm.weight"].fill_(math.nan))
    (broken / "eval-comps.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(broken, "--task", "blimp", "comps", f"--data={eval_files}")
    assert str(stopped.value.code).startswith("evaluate.py: blimp: no score: the model's log-probabilities are not")
    assert not (broken / "eval-comps.json").exists()


def test_one_failed_task_loses_no_other_s_score(run_folder, eval_files, monkeypatch, capsys):
    log_probabilities = evaluate.log_probabilities

    def too_large(model, items, *more, progress, **named):
        if progress.strip() == "blimp_supplement":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return log_probabilities(model, items, *more, progress=progress, **named)

    monkeypatch.setattr(evaluate, "log_probabilities", too_large)
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(run_folder, "--task", "blimp_supplement", "comps", f"--data={eval_files}")
    assert stopped.value.code == "evaluate.py: blimp_supplement: out of memory; try a smaller --batch-size"
    out = capsys.readouterr().out
    assert "\ncomps " in out and out.endswith(f"in {run_folder}: eval-comps.json\n")


def test_scores_are_printed_though_the_folder_cannot_be_written(run_folder, eval_files, monkeypatch, capsys):
    def full(file, text):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(run_folder, "--task=comps", f"--data={eval_files}", "--untrained=1")
    assert "No space left on device" in stopped.value.code and "\ncomps " in capsys.readouterr().out


def test_items_that_leave_one_in_a_group_have_no_interval(run_folder, eval_files, tmp_path, capsys):
    run = shutil.copytree(run_folder, tmp_path / "run")
    evaluate_main(run, "--task=comps", f"--data={eval_files}", "--items=2")
    row = results(run, "comps")["scores"][0]
    assert row["items"] == 2 and row["low"] is row["high"] is None and "comps " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(run, "--task", "reading", "comps", f"--data={eval_files}", "--items=12")
    assert "words with all numbers are too few for 8 predictors" in str(stopped.value.code)
    assert results(run, "comps")["scores"][0]["items"] > 2


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
        (["out/x", "--task", "toy", "blimp"], "blimp needs --data=FOLDER; the challenge has them at huggingface.co"),
        (["out/x", "--task=wug_adj", "--data=y"], "wug_adj is not among the tasks of 2026; give the other --rules"),
        (["out/x", "--task=global_piqa_parallel", "--rules=2025"], "is not among the tasks of 2025"),
        (["out/x", "--untrained=-1"], "--untrained: '-1': must be a whole number of at least 0"),
        (["out/x", "--items=0"], "--items: '0': must be a whole number of at least 1"),
        (["out/x", "--batch-size=0"], "--batch-size: '0': must be a whole number of at least 1"),
        (["--task=toy"], "the following arguments are required: run"),
    ],
)
def test_wrong_flags_of_evaluate_are_one_line(tmp_path, argv, wanted):
    refused(tmp_path, ["evaluate.py", *argv], wanted)


def test_a_folder_without_any_task_is_refused(run_folder, tmp_path):
    wanted = "no folder of any task there; the challenge has them at huggingface.co", "osf.io/ryjfm"
    refused(run_folder, ["evaluate.py", run_folder, f"--data={tmp_path}"], *wanted)


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


def test_every_file_of_scores_goes_with_a_run_that_is_replaced(tmp_path):
    for weights in ("last", "average"):
        for rules in ("2025", "2026"):
            for task in tasks.TASKS:
                file = evaluate.result_file(tmp_path, task, SimpleNamespace(weights=weights, rules=rules))
                assert all(checkpoint.OWN.fullmatch(file.with_suffix(end).name) for end in (".json", ".jsonl"))
    assert checkpoint.OWN.fullmatch("untrained.json") and not checkpoint.OWN.fullmatch("eval-notes.json")
