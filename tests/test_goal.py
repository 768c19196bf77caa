"""The goal: where it comes from, and what a run says of it before and while it trains."""

import json
from pathlib import Path

import pytest
from conftest import run

import curriculum
import data
import journal
from experiments import goal
from tools import compare


def visit(*losses: float, done: str | None = "converged") -> list[dict]:
    last = len(losses) - 1
    return [
        {"update": 1, "batch": 0, "repeat": i + 1, "loss": x, "done": done if i == last else None}
        for i, x in enumerate(losses)
    ]


def test_the_suggested_goal_looks_at_no_more_repeats_than_a_pass_leaves():
    records = visit(6, 5, 4, 3, 2, 1) + visit(5, 4, 3, 2, 1, 0) + visit(7, 6, 5, 4, 3, 2)
    assert journal.suggested_goal(records) == 3.5
    assert journal.suggested_goal(records, 2) == 5.5
    assert journal.suggested_goal([]) is None


def test_a_pass_that_will_not_come_round_is_said_after_a_tenth_of_the_budget(flags, tmp_path, capsys):
    low = ["--mode=bcp", "--goal=0.1", "--max-repeats=50", "--epochs=2"]
    budget = 2 * 19  # batches of this text
    run(flags, tmp_path / "low", *low, f"--max-updates={budget // 10 + 2}")
    told = capsys.readouterr()
    (warning,) = [line for line in (told.out + told.err).splitlines() if "warning" in line]
    assert "--goal=0.1 is low" in warning and "of 19 batches" in warning
    better = float(warning.split("with --goal=")[1].split()[0])
    assert better > 3
    for more in (["--max-repeats=2"], [f"--goal={better + 1}", "--patience=1"], ["--mode=random"]):
        run(flags, tmp_path / str(more), *low, *more, f"--max-updates={budget // 10 + 2}")
        told = capsys.readouterr()
        assert "warning" not in told.out + told.err


def test_the_header_says_what_was_read_and_where_the_goal_comes_from(tmp_path, cache, flags, text_file, capsys):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a book.txt").write_bytes(text_file.read_bytes())
    (folder / "notes.md").write_text("no text")
    own = [f"--data={folder}", *flags[1:], "--max-updates=1"]
    run(own, tmp_path / "made", "--mode=bcp")
    text, batches, budget = capsys.readouterr().out.splitlines()[2:5]
    assert text.startswith("text    books: 1 file, ") and text.endswith("; left out: 1 with another ending")
    assert " documents, " in text and " % of the tokens held out" in text
    assert batches.startswith("batches 19 of ") and "vocabulary" in batches
    made = json.loads((tmp_path / "made/config.json").read_text())["flags"]["goal"]
    corpus = data.open_prepared(Path(json.loads((tmp_path / "made/config.json").read_text())["corpus"]["folder"]))
    tokens = curriculum.join(corpus, curriculum.order_lines(corpus, "curriculum", "surprisal", 0))
    assert made == round(curriculum.bigram_loss(tokens, corpus.vocab_size) + 0.5, 2)
    assert budget == f"budget  190 updates, goal {made:g} nats per token (a bigram model's loss and half a nat)"
    run(own, tmp_path / "given", "--mode=bcp", f"--goal={made}")
    assert capsys.readouterr().out.splitlines()[4] == f"budget  190 updates, goal {made:g} nats per token"


@pytest.mark.parametrize("recipe", ["poster", "within-reach"])
def test_the_recipes_of_the_experiments_keep_their_goal(flags, tmp_path, recipe):
    """The loss of a bigram model on the very text that it counted, which is lower."""
    goals = {}
    for name, more in (("own", []), ("recipe", [f"--recipe={recipe}"]), ("idle", [f"--recipe={recipe}", "--idle"])):
        run(flags, tmp_path / name, "--mode=bcp", "--max-updates=1", *more)
        goals[name] = json.loads((tmp_path / name / "config.json").read_text())["flags"]["goal"]
    assert goals["recipe"] < goals["own"] - 0.3
    if recipe == "poster":  # both in order of difficulty
        assert goals["idle"] == pytest.approx(0.7 * (goals["own"] - 0.5), abs=0.011)  # each is rounded


def test_sentences_are_what_train_puts_in_order_with_split(flags, tmp_path):
    (tmp_path / "text.txt").write_text("A dog sees it. It runs!\n\nA cat. Here.\n" * 300)
    lines = {}
    for split in ("lines", "sentences"):
        out = tmp_path / split
        own = [f"--data={tmp_path / 'text.txt'}", *flags[1:], "--vocab-size=270", "--max-updates=1"]
        run(own, out, "--mode=random", f"--split={split}")
        config = json.loads((out / "config.json").read_text())
        assert config["flags"]["split"] == split
        lines[split] = config["corpus"]["n_lines"]
        assert data.open_prepared(config["corpus"]["folder"]).meta["settings"].get("split", "lines") == split
    assert lines == {"lines": 600, "sentences": 1200}


def test_the_experiment_cuts_texts_at_lines_and_says_how_far_each_rule_is_from_the_best(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / f"{name}.txt").write_text(f"{name} line\n" * 100)
    file = goal.cut(tmp_path, ["some"], 1, tmp_path / "cut/some.txt")
    lines = open(file).read().split("\n")
    assert lines[0] == "a line" and lines[-2:] == ["b line", ""] and 900 < sum(map(len, lines)) + len(lines) <= 1001

    run = {"goal": 3.0, "met": 0.5, "updates": 7}
    losses = {"x": [4.0, 4.5, 4.25, 5.0, 6.0], "y": [3.0, 2.0, 2.5, 2.25, 2.75]}
    found = {
        text: {rule: run | {"val_loss": loss} for rule, loss in zip(goal.RULES, some, strict=True)}
        for text, some in losses.items()
    }
    *_, first, second, means = goal.table(found).splitlines()
    assert first.startswith("| x | 7 | 3.00: 4.000 (50 %) | 3.00: 4.500 (50 %) |") and second.startswith("| y | 7 |")
    assert means.split(" | ")[1:3] == ["| 0.500, at most 1.000", "0.250, at most 0.500"]


def test_a_text_of_the_experiment_has_a_run_per_goal_and_is_made_once(flags, tmp_path, monkeypatch, capsys):
    made, start = [], compare.program

    def program(*words, threads):
        made.append(words)
        start(*words, *flags, threads=threads)

    monkeypatch.setattr(compare, "program", program)
    monkeypatch.setattr(goal, "TEXTS", {"lines": (["lines.txt"], 1000, 1)})
    monkeypatch.setattr(goal, "RULES", {"seen": None, "unseen": 0.0})
    monkeypatch.setattr(goal, "goals", lambda text, cache: {"seen": 3.0, "unseen": 5.0})
    monkeypatch.setattr("sys.argv", ["goal.py", str(tmp_path), f"--out={tmp_path / 'out'}", "--updates=3"])
    (tmp_path / "lines.txt").write_text("a b\n\nc d\n")
    for _ in range(2):
        goal.main()
        assert "| lines | 3 | 3.00:" in capsys.readouterr().out
    assert [next(word for word in words if word.startswith("--goal")) for words in made] == ["--goal=3.0", "--goal=5.0"]
    found = json.loads((tmp_path / "out" / "goal.json").read_text())["lines"]["unseen"]
    assert found["goal"] == 5 and 0 < found["met"] < 1 and found["updates"] == 3
