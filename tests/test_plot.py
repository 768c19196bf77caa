"""tools/plot.py: figures of tiny real runs, what is said when data is missing, and the numbers behind the figures."""

import json
import math
import re
import shutil
import sys
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest
import torch

import flags
import journal
import train
from tools import plot

SIZES = "--n-layer=2 --n-embd=16 --n-head=2 --n-kv-head=1 --n-mlp=24 --block-size=16 --batch-size=16".split()
BCP = ["--mode=bcp", "--p=1", "--pull=prox", "--goal=6.5", "--eta=0.5", "--norms-every=1", "--track-forgetting=5"]
FILES = {f"{name}.{kind}" for name in plot.FIGURES for kind in ("png", "svg")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache, text_file) -> Path:
    """A folder with three runs: `bcp` and `random` on the built-in corpus, `plain` on a text without minimal pairs."""
    folder = tmp_path_factory.mktemp("runs")
    common = [f"--cache={cache}", "--device=cpu", *SIZES, "--lr=0.01", "--warmup=3", "--max-updates=60"]
    for out, more in (
        ("bcp", [*BCP, "--max-repeats=100", "--eval-every=20"]),
        ("random", ["--mode=random", "--track-forgetting=5", "--eval-every=20"]),
        ("plain", ["--mode=random", f"--data={text_file}", "--vocab-size=400"]),
    ):
        assert train.main(flags.get_args([*common, f"--out={folder / out}", *more])) == 0
    return folder


def drawn(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def main(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, words)])
    plot.main()


def refused(monkeypatch, capsys, *words) -> str:
    """The one line with which it ends, exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(monkeypatch, *words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1
    return err


def records(folder: Path) -> list[dict]:
    return journal.read(folder)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_every_figure_is_drawn_into_the_run_folder(runs, monkeypatch):
    main(monkeypatch, runs / "bcp")
    assert drawn(runs / "bcp" / "figures") == FILES
    for file in (runs / "bcp" / "figures").iterdir():
        content = file.read_bytes()
        assert len(content) > 5000
        if file.suffix == ".png":
            assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") == plot.WIDTH * plot.DPI
        else:
            assert xml.dom.minidom.parseString(content).documentElement.tagName == "svg"
    assert not (runs / "random" / "figures").exists()


def test_several_runs_share_figures_and_each_says_what_it_lacks_in_one_line(runs, tmp_path, monkeypatch, capsys):
    main(monkeypatch, runs / "random", runs / "bcp", runs / "plain", "--out", tmp_path / "new" / "figures")
    assert drawn(tmp_path / "new" / "figures") == FILES
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].rsplit("/")[-1] + " " + line.split(": ")[1] for line in lines[:-1]] == [
        "random not in batch", "plain not in batch", "plain not in pairs", "plain not in retention",
        "random not in anchor", "plain not in anchor",
    ]  # fmt: skip
    main(monkeypatch, runs / "plain", "--out", tmp_path / "plain")
    assert drawn(tmp_path / "plain") == {"run.png", "run.svg", "difficulty.png", "difficulty.svg"}
    assert capsys.readouterr().out.count("\n") == 5  # four figures that it lacks, and what was drawn


def test_the_same_runs_give_the_same_drawings(runs, tmp_path):
    def drawing(file: Path) -> bytes:
        """Without the ids of its parts, some of which hash addresses in memory."""
        return re.sub(rb"[a-z][0-9a-f]{10}", b"", file.read_bytes())

    for folder in ("one", "other"):
        plot.draw([runs / "bcp"], tmp_path / folder)
    for name in FILES:
        if name.endswith(".svg"):
            assert drawing(tmp_path / "one" / name) == drawing(tmp_path / "other" / name)


def test_a_run_whose_file_of_ages_is_gone_is_drawn_without_its_difficulty(runs, tmp_path, capsys):
    config = json.loads((runs / "bcp" / "config.json").read_text())
    config["flags"] |= {"difficulty": "composite", "aoa_file": str(tmp_path / "gone.csv")}
    run = plot.read_run(runs / "bcp")._replace(config=config)
    assert plot.draw_difficulty([run]) is None
    assert "or what its score needs (--aoa-file=" in capsys.readouterr().out


def test_a_run_whose_corpus_is_gone_and_one_that_is_not_finished_are_drawn(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "bcp", tmp_path / "bcp", ignore=shutil.ignore_patterns("figures"))
    config = json.loads((run / "config.json").read_text())
    config["corpus"]["folder"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write('{"update": 61, "los')
    plot.draw([run], tmp_path / "figures")
    assert drawn(tmp_path / "figures") == FILES - {"difficulty.png", "difficulty.svg"}
    assert "not in difficulty: its prepared corpus is gone" in capsys.readouterr().out.splitlines()[0]
    (run / "metrics.jsonl").write_text("")  # a run that has just begun
    plot.draw([run], tmp_path / "none")
    assert drawn(tmp_path / "none") == set() and capsys.readouterr().out.count("\n") == 7


def test_a_line_with_mathematics_and_control_characters_is_drawn_as_it_is(cache, tmp_path):
    lines = [f"{'$' * (1 + n % 3)}x_{n}^{{2}} < \\frac & \x0b{n}" for n in range(600)]
    (tmp_path / "odd.txt").write_text("\n\n".join("\n".join(lines[i : i + 6]) for i in range(0, 600, 6)))
    more = [f"--data={tmp_path / 'odd.txt'}", "--vocab-size=300", "--mode=random", "--max-updates=2"]
    out = tmp_path / "run"
    assert train.main(flags.get_args([f"--cache={cache}", "--device=cpu", *SIZES, f"--out={out}", *more])) == 0
    plot.draw([out], out / "figures")
    assert xml.dom.minidom.parse(str(out / "figures" / "difficulty.svg"))


# --- Wrong use --------------------------------------------------------------------------------------------------------


def test_missing_and_damaged_runs_are_one_line(runs, tmp_path, monkeypatch, capsys):
    assert "no run there" in refused(monkeypatch, capsys, tmp_path / "nowhere")
    assert "is a file" in refused(monkeypatch, capsys, runs / "bcp", "--out", runs / "bcp" / "config.json")
    run = shutil.copytree(runs / "random", tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    assert "metrics.jsonl: line 2 is damaged" in refused(monkeypatch, capsys, runs / "bcp", run)
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl: missing" in refused(monkeypatch, capsys, run)
    (run / "config.json").write_text('{"flags": {}, "model": {}}')
    assert "config.json: not of a run" in refused(monkeypatch, capsys, run)
    assert drawn(run / "figures") == set()


def test_without_matplotlib_one_line_says_what_to_install(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(monkeypatch, capsys, runs / "bcp", "--out", tmp_path / "figures")


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_a_batch_can_be_chosen_and_the_longest_that_converged_is_taken_else(runs, capsys):
    run = plot.read_run(runs / "bcp")
    finished = run.visits[:-1]
    assert len(finished) >= 3 and all(plot.converged(visit) for visit in finished)
    longest = max(finished, key=lambda visit: (len(visit) <= 30, len(visit)))
    for batch, wanted in ((None, longest), (1, finished[1])):
        figure = plot.draw_batch([run], batch)
        upper, lower = figure.axes
        assert list(upper.lines[0].get_ydata()) == [update["loss"] for update in wanted]
        assert list(lower.lines[0].get_ydata()) == [1.0, *(update["alpha"] for update in wanted)]
        assert set(upper.lines[1].get_ydata()) == {6.5} and set(lower.lines[1].get_ydata()) == {1.0}
        assert set(upper.lines[2].get_xdata()) == set(lower.lines[2].get_xdata()) == {len(wanted)}
    assert plot.draw_batch([run], 9999) is None
    assert "no batch 9999" in capsys.readouterr().out


def test_legends_have_the_flags_that_differ_and_only_lines_that_are_there(runs):
    both = [plot.read_run(runs / "bcp"), plot.read_run(runs / "plain")._replace(name="_a $b$")]
    one, other = plot.named(both)
    assert "--mode=bcp" in one.name and "--mode=random" in other.name and "--seed" not in one.name + other.name
    assert other.name.startswith(" _a \\$b\\$")
    mute = other._replace(evaluations=[e | {"val_loss": None} for e in other.evaluations])
    figure = plot.draw_run([one, mute])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [f"{one.name}: training", f"{one.name}: validation", f"{mute.name}: training"]
    assert len(figure.axes) == 2  # the rate does not vary but for its warm-up
    updates = [update | {"lr": update["lr"] / update["update"]} for update in one.updates]
    assert len(plot.draw_run([one._replace(updates=updates)]).axes) == 3


def test_retention_by_hand():
    forgetting = [[0, 1, 2.0, 2.5], [1, 4, 1.0, 3.0], [0, 7, 2.0, 5.0], [1, 8, 1.0, 4.0], [2, 9, 1.0, None]]
    assert plot.retention(forgetting) == [(1.0, 2.0, 2.5, 1), (5.5, 1.5, 4.0, 2), (8.0, 1.0, 4.0, 1)]


def test_distance_from_the_anchor_by_layer_by_hand():
    anchor = [torch.zeros(2), torch.ones(2, 2), torch.zeros(1)]
    W = [torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 5.0], [1.0, 1.0]]), torch.tensor([12.0])]
    found = journal.drift(W, anchor, ["embed_tokens", "0", "0"])
    assert found["anchor_dist"] == pytest.approx(13.0)  # 3, 4, 12
    assert found["anchor_by_layer"] == {"embed_tokens": 3.0, "0": pytest.approx(math.sqrt(160))}
    assert found["unmoved"] == pytest.approx(4 / 7)


def test_runs_log_distance_by_layer_and_unmoved_weights_where_norms_are_measured(runs, tmp_path, cache):
    updates = [record for record in records(runs / "bcp") if "loss" in record]
    for update in updates:
        assert list(update["anchor_by_layer"]) == ["embed_tokens", "0", "1", "norm"]
        parts = update["anchor_by_layer"].values()
        assert update["anchor_dist"] == pytest.approx(np.linalg.norm(list(parts)), rel=1e-5)
    assert max(update["unmoved"] for update in updates) > 0.1  # the soft threshold leaves weights where they were
    assert not any("unmoved" in record for record in records(runs / "random"))
    out, more = tmp_path / "run", [*BCP, "--norms-every=4", "--max-updates=9", f"--cache={cache}", "--device=cpu"]
    assert train.main(flags.get_args([*more, *SIZES, f"--out={out}"])) == 0
    assert [record["update"] for record in records(out) if "unmoved" in record] == [4, 8]
