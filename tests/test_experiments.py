"""experiments/e5.py and its GPU script: sources are cut in two and never mixed, finished runs are scored once.

experiments/stages.py: stages are cut out of free text, mixed and drawn."""

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from torch.nn.functional import cross_entropy

import bcp
import checkpoint
import curriculum
import data
import evaluate
import flags
import toy
import train
from experiments import dual, e5, e7, e8, e9, stages
from tools import bench

ROOT = Path(__file__).resolve().parents[1]
LOSS = train.loss_and_gradient


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Two sources: scenes of the built-in corpus, and others in capital letters."""
    folder = tmp_path_factory.mktemp("corpus")
    scenes = ["\n".join(scene) for scene in toy.documents(words=12000)]
    for name, text in (("low", scenes[::2]), ("high", [scene.upper() for scene in scenes[1::2]])):
        (folder / name).mkdir()
        (folder / name / "scenes.txt").write_text("\n\n".join(text) + "\n")
    return folder


def test_sources_are_cut_in_two_parts_that_share_no_line(sources, tmp_path):
    e5.prepare(sources, tmp_path, words=5000, held_out=1000)
    for name in ("low", "high"):
        text = (sources / name / "scenes.txt").read_text()
        train, held_out = ((tmp_path / part / f"{name}.txt").read_text() for part in ("train", "held-out"))
        assert (
            2000 <= len(train.split()) <= 3100 and 0 < len(held_out.split()) <= 1100
        )  # lines known from train are out
        lines, aside = (set(part.split("\n")) - {""} for part in (train, held_out))
        assert not lines & aside and lines | aside <= set(text.split("\n"))
    e5.prepare(sources, tmp_path, words=10**9, held_out=1000)
    whole = sum(len((sources / name / "scenes.txt").read_text().split()) for name in ("low", "high"))
    kept = sum(len(file.read_text().split()) for file in (tmp_path / "train").iterdir())
    assert whole - 4000 < kept < whole  # all but what is held out and the last, unfinished excerpt


def test_finished_runs_are_scored_once(sources, tmp_path, eval_files, monkeypatch, capsys):
    for name in ("blimp", "blimp_supplement"):
        shutil.copytree(eval_files / ("blimp_filtered" if name == "blimp" else name), tmp_path / "eval" / name)
    monkeypatch.chdir(tmp_path)
    e5.prepare(sources, Path("data/e5"), words=5000, held_out=1000)

    def train(folder: str, *more: str) -> None:
        size = "--n-layer=1 --n-embd=16 --n-head=2 --n-kv-head=1 --n-mlp=24 --block-size=32 --vocab-size=400"
        command = [sys.executable, str(ROOT / "train.py"), *size.split(), "--data=data/e5/train", "--device=cpu",
                   "--epochs=1", f"--out=out/e5/{folder}", "--mode=random", *more]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)

    train("random-s0", "--max-updates=3")
    train("random-s1", "--max-updates=3", "--seed=1")
    results = Path("results/e5.json")
    results.parent.mkdir()
    results.write_text('{"results": {"random": {"0": {}}}}')  # the other one has not ended yet

    tasks = ["blimp", "blimp_supplement"]
    e5.score(Path("eval"), "e5", tasks, untrained=2, items=None)
    kept = json.loads(Path("results/e5-tasks.json").read_text())
    assert list(kept["random"]) == ["0"] and set(kept["random"]["0"]["loss"]) == {"low", "high"}
    own = json.loads(Path("out/e5/random-s0/eval-blimp.json").read_text())["scores"][0]
    assert kept["random"]["0"]["blimp"] == pytest.approx(own["score"], abs=1e-3)
    bands = kept["random"]["0"]["untrained"]
    assert set(bands) == set(tasks) and bands["blimp"] == own["untrained"] and len(own["untrained"]) == 2

    model, tokenizer, _ = evaluate.load_run(Path("out/e5/random-s0"), torch.device("cpu"))
    total = count = 0
    for line in Path("data/e5/held-out/low.txt").read_text().split("\n"):
        if line:
            ids = torch.tensor([model.config.vocab_size - 1, *tokenizer.encode_ordinary(line)])
            with torch.no_grad():
                total += cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
            count += len(ids) - 1
    assert kept["random"]["0"]["loss"]["low"] == pytest.approx(total / count, rel=1e-3)

    results.write_text('{"results": {"random": {"0": {}, "1": {}}}}')
    capsys.readouterr()
    e5.score(Path("eval"), "e5", tasks, untrained=2, items=None)
    said = capsys.readouterr().out
    assert "random-s1" in said and "random-s0" not in said  # no second time
    table = Path("results/e5-tasks.md").read_text()
    assert table.count("\n") == 4 and "| random | " in table and "±" in table
    low, high = min(bands["blimp"]), max(bands["blimp"])
    assert f"| 2 untrained models |  |  |  | {(low + high) / 2:.1f} ({low:.1f} to {high:.1f}) |" in table


@pytest.fixture
def free_text(tmp_path, monkeypatch) -> Path:
    """A corpus of the three sources that the stages come from; the working directory is an empty one beside it."""
    speech = ["*MOT:\tlook there", "*CHI:\tdog", "*CHI:\ta big dog", "", "*MOT:\tdo you see the dog over there",
              "", "*FAT:\t" + "far too long " * 4, "*MOT:\tgood boy"]  # fmt: skip
    story = ["Once there was a dog."] * 2 + ["", "The end."]
    sources = {"childes": 40 * [*speech, ""], "children_stories": 30 * [*story, ""], "dialogue": story}
    for source, lines in sources.items():
        (tmp_path / "corpus" / source).mkdir(parents=True)
        (tmp_path / "corpus" / source / "a.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "corpus"


def test_stages_are_cut_by_the_number_of_words_without_labels(free_text):
    stages.cut(free_text)
    texts = {file.as_posix(): file.read_text() for file in Path("data/stages").rglob("*.txt")}
    story = "Once there was a dog.\nOnce there was a dog.\n\nThe end."
    assert texts == {
        "data/stages/1-short/childes.txt": "\n\n".join(40 * ["look there\na big dog\n\ngood boy"]) + "\n",
        "data/stages/2-medium/childes.txt": "\n\n".join(40 * ["do you see the dog over there"]) + "\n",
        "data/stages/4-stories/children_stories.txt": "\n\n".join(30 * [story]) + "\n",
        "data/stages/4-stories/dialogue.txt": story + "\n",
    }
    whole = {name: len(text.split()) for name, text in texts.items()}
    stages.cut(free_text, words=sum(whole.values()) // 3)
    for name, words in whole.items():
        assert abs(len(Path(name).read_text().split()) - words / 3) <= 10  # the longest document
    stages.cut(free_text, words=10**9)
    assert {name: Path(name).read_text() for name in texts} == texts


def test_the_picture_of_the_stages_shows_what_the_order_made(free_text, monkeypatch):
    monkeypatch.setattr(curriculum, "is_rare", {"boy"}.__contains__)
    stages.cut(free_text)
    stages.figure()
    assert stages.FIGURE.stat().st_size > 5000 and stages.FIGURE.with_suffix(".svg").stat().st_size > 5000
    corpus = data.open_prepared(next(Path("data/cache").iterdir()))
    shares = stages.measured(corpus, curriculum.order_lines(corpus, "stages", "length", 0), 10)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares[0].argmax() == 0 and shares[-1].argmax() == 2
    ax = stages.draw(shares, shares.mean(axis=0)).axes[0]
    drawn = [line.get_ydata() for line in ax.lines if line.get_marker() != "None"]
    np.testing.assert_array_equal(np.transpose(drawn), shares)


@pytest.mark.parametrize(("wrong", "wanted"), [
    ([], "nothing to do; give a corpus to cut, or --figure"), (["nowhere"], "nowhere/childes: no such folder"),
    (["--figure", "--words=9"], "--words: of a corpus to cut"),
])  # fmt: skip
def test_stages_say_what_is_missing_in_one_line(wrong, wanted, capsys):
    with pytest.raises(SystemExit, match="2"):
        stages.get_args(wrong)
    error = capsys.readouterr().err
    assert error.startswith("experiments.stages: error: ") and wanted in error and error.count("\n") == 1


@pytest.mark.parametrize("grid", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda file: file.stem)
def test_the_flags_of_every_run_are_understood(grid):
    grid = tomllib.loads(grid.read_text())
    assert grid["reference"] in grid["runs"]
    for own in grid["runs"].values():
        for quick in ("", grid.get("quick", "")):
            words = f"{grid.get('flags', '')} {own} --seed={grid['seeds'][0]} {quick}"
            own_of_program = ("--by-source", "--dual=", "--above=") if "program" in grid else ()
            words = [word for word in shlex.split(words) if not word.startswith(own_of_program)]
            assert flags.get_args(words).keep_weights or "average" not in grid


def test_the_recipe_is_the_same_everywhere():
    """What --recipe=within-reach sets is what the grids spell out, which were made before it had a name."""
    recipe = "--mode=bcp --recipe=poster --p=2 --order=random --leave-at-goal --patience=1 --goal-rel=0.98"
    named, spelt = (vars(flags.get_args(words.split())) for words in ("--recipe=within-reach", recipe))
    assert {name for name in named if named[name] != spelt[name]} == {"recipe"}
    for file in ("experiments/e3-best.toml", "experiments/e5.toml", "experiments/e5-gpu.toml"):
        assert recipe in (ROOT / file).read_text(), file


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and the script would train on it")
def test_the_gpu_script_says_what_is_missing(tmp_path):
    def run(*words: str) -> tuple[int, str]:
        command = ["bash", str(ROOT / "experiments" / "e5-gpu.sh"), *words]
        env = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert run() == (2, f"usage: {ROOT / 'experiments' / 'e5-gpu.sh'} prepare CORPUS | run EVAL [RUN...]\n")
    status, error = run("prepare")
    assert status and "CORPUS is missing" in error
    assert run("run", str(tmp_path)) == (1, "e5-gpu.sh: no GPU was found\n")


def test_how_wide_a_range_of_rates_is_good():
    rates = [1e-3, 4e-3, 1.6e-2]
    factor, ends = e8.width(rates, [3.0, 2.5, 3.0])  # a fifth of the way on both sides
    assert factor == pytest.approx(4**0.4, rel=0.02) and not ends
    assert e8.width(rates, [2.5, 2.55, 3.5]) == (pytest.approx(4 ** (1 + 0.05 / 0.95), rel=0.02), True)


@pytest.mark.parametrize("mode", ["random", "curriculum-repeat", "bcp-1", "bcp-2"])
def test_the_benchmark_trains_by_the_real_loop(mode):
    steps = bench.ours(mode, bench.Setting("nano", 16, 16, "cpu", compiled=False))
    for _ in range(4):
        next(steps)


def test_text_is_given_up_and_runs_are_scored_where_it_would_stop_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(e7, "SIZES", (1,))
    e7.prepare(None)
    base, less = (data.open_prepared(Path(f"data/e7/{name}")) for name in ("1", "1-20"))
    given_up = less.doc_val & ~base.doc_val
    assert (base.doc_val <= less.doc_val).all() and given_up.sum() == round(0.2 * (~base.doc_val).sum())
    words = ["--preset=nano", "--epochs=2", "--eval-every=3", "--keep-weights=evaluations", "--lr=0.01"]
    for name in ("1", "1-20"):
        run(words, tmp_path / name, f"--data=data/e7/{name}", "--mode=random", "--max-updates=12")
        found, points = e7.score(tmp_path / name), checkpoint.kept_weights(tmp_path / name)
        assert found["end"]["loss"] < found["end"]["worst"] and 0 <= found["end"]["pairs"] <= 100
        if name == "1":  # no text to stop it by
            losses = found["losses"]
            assert [*losses] == [update for update, _ in points] and len(losses) > 2
            assert found["best"] | {"loss": min(losses.values())} == found["best"]
            assert found["end"]["update"] == points[-1][0]
            assert found["end"]["loss"] == pytest.approx(losses[points[-1][0]], abs=1e-5)
            end, best = (f"{found[at]['loss']:.3f}" for at in ("end", "best"))
            row = e7.table({"random": {"0": found}}).splitlines()[-1]
            assert row.startswith(f"| random | {end} | ") and f"| {best} | {found['best']['update']} | - |" in row
    model, *_ = evaluate.load_run(tmp_path / "1-20", torch.device("cpu"))
    config = checkpoint.read_config(tmp_path / "1-20")["flags"]
    x, y = curriculum.validation_blocks(dataclasses.replace(less, doc_val=given_up), config["block_size"])
    by = {}
    for update, file in points:
        checkpoint.fill(model, checkpoint.load(file)["model"], file)
        by[update] = evaluate.mean_loss(model, x, y)
    assert found["end"]["update"] == min(by, key=by.get)


def test_what_was_stopped_by_a_part_is_trained_again_for_as_many_passes():
    whole = {"0": {"losses": {"8": 4.0, "10": 3.0, "12": 5.0}}, "1": {"losses": {"10": 3.5}}}
    kept = {"e7-size": {"random (4)": whole, "random gives up 20 % (4)": {"0": {"end": {"update": 8}}}}}
    assert e7.trained_again(kept, "4") == {"0": 3.0}  # 8 updates of four fifths are ten of the whole


def test_one_source_comes_after_another_and_each_may_have_one_anchor(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(e9, "SOURCES", {"1-low": "low", "2-high": "high"})
    e9.prepare(sources, words=2000, held_out=1000)
    dropped = []
    monkeypatch.setattr(train, "train", train.train)
    monkeypatch.setattr(bcp, "drop_anchor", lambda anchor, W: dropped.append(len(anchor)))
    words = ["--preset=nano", "--order=shift", "--data=data/e9/thrice", "--epochs=1", "--eval-every=5",
             "--keep-weights=evaluations", "--mode=bcp", "--max-repeats=1", "--goal=1"]  # fmt: skip
    assert e9.train_by_source([*words, "--by-source", "--out=out/l2"]) == 0
    config = checkpoint.read_config(Path("out/l2"))
    begins = e9.first_batches(
        data.open_prepared(Path(config["corpus"]["folder"])), argparse.Namespace(**config["flags"])
    )
    assert len(dropped) == 2 and begins[0] == 0 and 0.4 < begins[1] / config["batches"] < 0.6
    found = e9.score(Path("out/l2"))
    assert begins[1] - 5 < found["1-low"]["update"] <= begins[1] < found["2-high"]["update"] == config["batches"]
    low, high = (found[stage]["losses"] for stage in ("1-low", "2-high"))
    assert low["1-low"] < low["2-high"] and high["2-high"] < low["2-high"] and high["1-low"] > low["1-low"]
    past, new = e9.old_and_new(found, "2-high")
    assert f"| L2 | 1 | {config['batches']} | {past:.2f} | {new:.2f} |  |" in e9.table({"L2": {"0": found}})

    def after(past: float, new: float, update: int = 9) -> dict:
        return {"0": {"1-low": None, "2-high": {"update": update, "losses": {"1-low": past, "2-high": new}}}}

    kept = {
        "plain, 1": after(4.0, 6.0),
        "plain, 2": after(5.0, 5.0),
        "plain, 3": after(5.5, 5.5),
        "BCP": after(4.4, 5.5),
    }
    assert e9.beyond(kept, "BCP", "2-high") == [pytest.approx(-0.1)]  # halfway between the two rates that count: 4.5
    assert e9.beyond(kept | {"BCP": after(4.4, 7.0)}, "BCP", "2-high") == [pytest.approx(0.4)]
    kept["plain with more passes"] = after(4.2, 5.5, update=12)
    assert e9.beyond(kept, "BCP", "2-high") == [pytest.approx(-0.1)]
    assert e9.beyond(kept | {"BCP": after(4.4, 5.5, update=12)}, "BCP", "2-high") == [pytest.approx(0.2)]


def test_a_block_above_the_goal_weighs_more_in_every_pass(tmp_path, cache, monkeypatch):
    words = ["--preset=nano", "--mode=random", "--epochs=2", "--max-updates=9", "--eval-every=100", f"--cache={cache}",
             "--data=" + str(tmp_path / "some.txt")]  # fmt: skip
    (tmp_path / "some.txt").write_text("\n\n".join("\n".join(scene) for scene in toy.documents(words=400)) + "\n")
    reached = {}
    for name, more in (("plain", None), ("zero", "--dual=0"), ("some", "--dual=5")):
        monkeypatch.setattr(train, "loss_and_gradient", LOSS)
        out = tmp_path / name
        argv = [*words, f"--out={out}"]
        assert (dual.train_dual([*argv, more, "--above=1"]) if more else train.main(flags.get_args(argv))) == 0
        reached[name] = checkpoint.load(out / checkpoint.NAME)["model"]["model.embed_tokens.weight"]
    assert checkpoint.read_config(tmp_path / "some")["batches"] < 6  # so that blocks come again
    assert torch.equal(reached["plain"], reached["zero"]) and not torch.equal(reached["plain"], reached["some"])
    found = dual.score(tmp_path / "some")
    assert found["blocks, 95 %"] <= found["blocks, most"] and found["lines, 95 %"] <= found["worst tenth"] + 1
    assert found["rare"] > found["loss"]
    table = dual.table({"plain": {"0": found, "1": found}, "some": {"0": found, "1": found}})
    assert "| some, against plain | +0.000 [+0.000, +0.000] |" in table
