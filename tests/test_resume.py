"""Saving and resuming: the same run to the bit, whatever ends it; what is damaged, foreign or in use is refused."""

import contextlib
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from chaos import equal, program, same_run
from conftest import ROOT, refused, run, weights

import checkpoint
import curriculum
import journal
import machine
import train
from flags import get_args
from model import Config, Transformer


def resume(out: Path, *more: str) -> list:
    """The command line that goes on with a run."""
    return ["train.py", f"--out={out}", "--resume", *more]


# --- The same run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "curriculum", "curriculum-repeat", "bcp"])
def test_resuming_gives_bit_identical_weights(flags, tmp_path, mode):
    more = [f"--mode={mode}", "--goal=4.5", "--lr-schedule=cosine", "--eval-every=7", "--keep-weights=evaluations"]
    run(flags, tmp_path / "whole", *more, "--max-updates=31")
    for stop in (13, 14, 31):
        run(*((flags, tmp_path / "parts", *more) if stop == 13 else ([], tmp_path / "parts", "--resume")),
            f"--max-updates={stop}")  # fmt: skip
        if mode in ("curriculum-repeat", "bcp") and stop == 13:  # in the middle of a batch's repeats
            state = checkpoint.load(tmp_path / "parts" / "checkpoint.pt")
            assert state["alpha"]["repeats"] > 0 and len(state["anchor"]) == (mode == "bcp") * 14
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-2:] for name in ("whole", "parts"))
    assert whole == parts and ['"loss"' in whole[0], '"toy"' in whole[1]] == [True] * 2
    for name in ("checkpoint.pt", *(f"weights-{update}.pt" for update in (7, 14, 21, 28, 31))):
        assert equal(*(checkpoint.load(tmp_path / side / name) for side in ("whole", "parts"))), name
    assert not (tmp_path / "parts" / "weights-13.pt").exists()  # of an evaluation that the whole run does not make


def test_a_run_cut_off_after_its_last_checkpoint_repeats_no_update(flags, tmp_path):
    more = ["--mode=bcp", "--save-every=5"]
    run(flags, tmp_path / "whole", *more, "--max-updates=12")
    run(flags, tmp_path / "parts", *more, "--max-updates=10")
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as metrics:
        metrics.write(
            '{"update": 11, "loss": 9.9}\n{"update": 12, "lo'
        )  # written after the checkpoint, and half-written
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    evaluation = next(i for i, line in enumerate(lines) if '"update": 10, "val_loss"' in line)
    (tmp_path / "parts" / "metrics.jsonl").write_text("\n".join(lines[:evaluation] + lines[evaluation + 1 :]))
    run(flags, tmp_path / "parts", "--resume", "--max-updates=12")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves_cleanly(flags, tmp_path, number, status):
    command = [sys.executable, "train.py", *flags, "--mode=bcp", "--goal=5.5", "--epochs=300", "--eval-every=100000"]
    out = tmp_path / "cut"
    process = subprocess.Popen([*command, f"--out={out}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 40:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status and b"Traceback" not in stderr and b"--resume" in stdout
    saved = checkpoint.load(out / "checkpoint.pt")["update"]
    assert saved >= 39
    run([], out, "--resume", f"--max-updates={saved + 10}")
    more = ["--mode=bcp", "--goal=5.5", "--epochs=300", "--eval-every=100000"]
    run(flags, tmp_path / "whole", *more, f"--max-updates={saved + 10}")
    assert same_run(tmp_path / "whole", out)


def test_resume_without_a_checkpoint_starts_over_and_on_a_finished_run_says_so(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    (out / "checkpoint.pt").unlink()
    updates, _ = run(flags, out, "--resume", "--max-updates=3")
    assert [u["update"] for u in updates] == [1, 2, 3]
    capsys.readouterr()
    run([], out, "--resume", "--max-updates=3")
    assert "is finished after 3 updates" in capsys.readouterr().out


def test_the_line_that_says_how_to_go_on_is_a_command_that_does(flags, tmp_path, capsys):
    out = tmp_path / "a run"
    run(flags, out, "--epochs=1", "--max-updates=3")
    capsys.readouterr()
    run([], out, "--resume")
    words = shlex.split(capsys.readouterr().out.split("to go on: ")[1])
    assert words[:2] == ["python", "train.py"] and train.main(get_args(words[2:])) == 0
    assert [u["update"] for u in journal.updates(journal.read(out))] == list(range(1, 20))


def test_a_text_that_was_moved_is_known_by_its_digest(flags, tmp_path, text_file):
    text = tmp_path / "here.txt"
    text.write_bytes(text_file.read_bytes())
    run([*flags, f"--data={text}"], tmp_path / "run", "--max-updates=3")
    text = text.rename(tmp_path / "there.txt")
    refused(tmp_path, resume(tmp_path / "run", "--max-updates=5"), "here.txt' is no corpus")
    for reached in (5, 7):  # the second time it need not be said
        run([], tmp_path / "run", "--resume", f"--max-updates={reached}", *([f"--data={text}"] if reached == 5 else []))
    run(flags, tmp_path / "whole", "--max-updates=7")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_ages_that_were_edited_are_noticed(flags, tmp_path):
    pytest.importorskip("wordfreq")
    ages, out = tmp_path / "ages.csv", tmp_path / "run"
    ages.write_text("word,rating\nthe,2\nfox,4\n")
    run(flags, out, "--difficulty=composite", f"--aoa-file={ages}", "--max-updates=2")
    ages.write_text("word,rating\nthe,9\nfox,1\n")
    refused(tmp_path, resume(out, "--max-updates=3"), "not in its order")
    state = checkpoint.load(out / "checkpoint.pt")
    del state["run"]["text"]["order"]  # an older run does not know it
    checkpoint.save(out / "checkpoint.pt", state)
    run([], out, "--resume", "--max-updates=3")


def test_a_signal_that_was_ignored_at_the_start_stays_so():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with machine.caught_signals() as caught:
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
            assert caught == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("mode", ["curriculum-repeat", "bcp"])
def test_more_epochs_go_on_as_if_there_had_been_so_many_from_the_start(flags, tmp_path, mode):
    more = [
        f"--mode={mode}",
        "--goal=5",
        "--repeats=2",
        "--eval-every=15",
        "--keep-weights=evaluations",
        "--max-repeats=5",
    ]
    run(flags, tmp_path / "whole", *more, "--epochs=3")
    run(flags, tmp_path / "parts", *(more if mode == "bcp" else [*more[:2], *more[3:]]), "--epochs=2")
    run([], tmp_path / "parts", "--resume", "--epochs=3", "--max-updates=50")
    assert json.loads((tmp_path / "parts/config.json").read_text())["flags"]["epochs"] == 3
    run([], tmp_path / "parts", "--resume", "--max-updates=57")  # the longer budget is kept
    for out in (tmp_path / "whole", tmp_path / "parts"):
        assert [update for update, _ in checkpoint.kept_weights(out)] == [15, 30, 45, 57]
    for name in ("checkpoint.pt", "weights-15.pt", "weights-30.pt", "weights-45.pt", "weights-57.pt"):
        assert equal(*(checkpoint.load(tmp_path / side / name)["model"] for side in ("whole", "parts"))), name


def test_the_weights_of_every_evaluation_are_kept(flags, tmp_path):
    more = ["--mode=random", "--eval-every=2"]
    run(flags, tmp_path / "run", *more, "--keep-weights=evaluations", "--max-updates=7")
    kept = dict(checkpoint.kept_weights(tmp_path / "run"))
    assert list(kept) == [2, 4, 6, 7]
    for update in (4, 7):
        run(flags, tmp_path / f"{update}", *more, f"--max-updates={update}")
        assert equal(checkpoint.load(kept[update]), {"model": weights(tmp_path / f"{update}")})
    assert checkpoint.kept_weights(tmp_path / "7") == []


def test_an_emptied_record_is_how_to_go_on_without_it(flags, tmp_path):
    run(flags, tmp_path / "run", "--max-updates=3")
    (tmp_path / "run/metrics.jsonl").write_text("")
    updates, _ = run([], tmp_path / "run", "--resume", "--max-updates=5")
    assert [u["update"] for u in updates] == [4, 5]


# --- Loss and gradient that are not finite ----------------------------------------------------------------------------

KINDS = ["loss", "gradient", "loss of the replayed rows", "gradient of the replayed rows"]


def poison(monkeypatch, update: int, kind: str) -> None:
    """Make this kind of number bad in that update: a loss NaN, and its gradient too; or a gradient alone infinite."""
    ordinary, calls = train.loss_and_gradient, []

    def poisoned(state, *args, **more):
        L, stop = ordinary(state, *args, **more)
        calls.append(state.update + 1)
        rows = " of the replayed rows" if calls.count(update) == 2 else ""  # they come second
        if calls[-1] == update and kind in ("loss" + rows, "gradient" + rows):
            value = math.nan if "loss" in kind else math.inf
            next(state.model.parameters()).grad[0, 0] = value
            L = value if "loss" in kind else L
        return [L, stop]

    monkeypatch.setattr(train, "loss_and_gradient", poisoned)


@pytest.mark.parametrize(
    ("mode", "kind"), [("random", "loss"), ("curriculum-repeat", "gradient"), *(("bcp", kind) for kind in KINDS)]
)
def test_the_first_update_that_is_not_finite_ends_the_run_which_goes_on_from_its_checkpoint(
    flags, tmp_path, monkeypatch, capsys, mode, kind
):
    out, more = tmp_path / "run", [f"--mode={mode}", "--goal=5", "--p=2", "--repeats=4", "--save-every=4"]
    more += ["--replay=0.25"] if mode == "bcp" else []
    updates, _ = run(flags, tmp_path / "whole", *more, "--max-updates=9")
    run(flags, tmp_path / "four", *more, "--max-updates=4")
    poison(monkeypatch, 7, kind)
    capsys.readouterr()
    assert train.main(get_args([*flags, *more, f"--out={out}", "--max-updates=9"])) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    value = "nan" if "loss" in kind else "inf"
    assert line.startswith(f"train.py: update 7, batch {updates[6]['batch']}: the {kind} is {value}; try a lower --lr")
    assert line.endswith(f"to go on: python train.py --resume --out={out}")
    assert equal(*(checkpoint.load(folder / "checkpoint.pt") for folder in (out, tmp_path / "four")))
    assert journal.updates(journal.read(out)) == updates[:6]
    monkeypatch.undo()
    run([], out, "--resume")  # whatever it was has passed
    assert same_run(tmp_path / "whole", out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_that_is_not_finite_is_not_taken(flags, tmp_path, monkeypatch, kind):
    def trained(updates: int) -> dict:
        more = ["--mode=bcp", "--goal=5", "--replay=0.25", f"--max-updates={updates}", f"--out={tmp_path / 'none'}"]
        state = train.start(get_args([*flags, *more]))
        state.folder = None
        with contextlib.suppress(FloatingPointError):
            train.train(state, journal.Journal(state, None), [])
        assert state.update == 2
        return {"model": state.model.state_dict(), "moments": state.optimizer.state_dict()["state"]}

    before = trained(2)
    poison(monkeypatch, 3, kind)
    assert equal(before, trained(9))


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"x": torch.zeros(3)})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(file, {"x": torch.ones(3)})
    assert torch.equal(checkpoint.load(file)["x"], torch.zeros(3))


def test_without_hard_links_the_checkpoint_before_is_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    names = [tmp_path / name for name in ("checkpoint.pt", "checkpoint-previous.pt")]
    for i in range(3):
        checkpoint.save(names[0], {"i": i}, previous=names[1])
    assert [checkpoint.load(file)["i"] for file in names] == [2, 1] and len(list(tmp_path.iterdir())) == 2


def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    for name in ("checkpoint.pt", "checkpoint.pt.part"):
        (tmp_path / name).symlink_to(theirs)
    checkpoint.save(tmp_path / "checkpoint.pt", {"x": 1})
    assert theirs.read_text() == "mine" and checkpoint.load(tmp_path / "checkpoint.pt") == {"x": 1}


def test_every_flipped_bit_and_every_cut_of_a_checkpoint_is_noticed(tmp_path):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"x": torch.arange(3000.0), "n": [1, 2.5, "three"]})
    assert torch.load(file, weights_only=True)["n"] == [1, 2.5, "three"]  # plain torch reads it too
    whole, places = file.read_bytes(), random.Random(0)
    for _ in range(60):
        place = places.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << places.randrange(8)
        for content in (bytes(flipped), whole[:place]):
            file.write_bytes(content)
            with pytest.raises(checkpoint.CheckpointError, match="damaged"):
                checkpoint.load(file)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, sealed):
    """With the right digest too, which anybody can make."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"model": Evil()}) if sealed else torch.save({"model": Evil()}, file)
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of this program") as error:
        checkpoint.load(file)
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken_only_when_asked(flags, tmp_path):
    more = ["--mode=bcp", "--save-every=4"]
    run(flags, tmp_path / "whole", *more, "--max-updates=14")
    out = tmp_path / "parts"
    run(flags, out, *more, "--max-updates=10")  # checkpoints at 8 and 10
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:-7] + b"x" * 7)
    wanted = ["checkpoint.pt: damaged", "to go on from the one before it, put checkpoint-previous.pt in its place"]
    refused(tmp_path, resume(out, "--max-updates=14"), *wanted)
    (out / "checkpoint-previous.pt").replace(out / "checkpoint.pt")
    run([], out, "--resume", "--max-updates=14")
    assert same_run(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        (
            ["--seed=1", "--lr=0.5", "--pull=gradient", "--stream", "--n-layer=2"],
            ["--seed=0", "--lr=0.01", "--pull=prox", "no --stream", "no --n-layer"],
        ),
        (["--epochs=3"], ["--epochs=4"]),  # fewer
        (["--eval-every=3", "--goal=4", "--order=random"], ["--eval-every=1000", "--goal=5.0", "--order=curriculum"]),
    ],
)
def test_every_changed_flag_that_would_change_the_result_is_named(flags, tmp_path, wrong, wanted):
    out = tmp_path / "run"
    run(flags, out, "--goal=5", "--epochs=4", "--max-updates=2")
    refused(tmp_path, resume(out, *wrong), *wanted)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_more_epochs_are_refused_where_the_rate_spans_them(flags, tmp_path, schedule):
    out = tmp_path / "run"
    run(flags, out, f"--lr-schedule={schedule}", "--max-updates=2")
    refused(tmp_path, resume(out, "--epochs=20"), "--epochs=10")


def forget(out: Path, name: str, **more) -> None:
    """Make the run in `out` one of a program that does not know the flag `name`, but knows those of `more`."""
    config = json.loads((out / "config.json").read_text())
    state = checkpoint.load(out / "checkpoint.pt")
    for flags in (config["flags"], state["run"]["flags"]):
        flags.pop(name, None)
        flags |= more
    (out / "config.json").write_text(json.dumps(config))
    checkpoint.save(out / "checkpoint.pt", state)


def test_a_flag_that_an_older_run_does_not_know_had_its_default(flags, tmp_path):
    run(flags, tmp_path / "whole", "--mode=bcp", "--max-updates=5")
    out = tmp_path / "run"
    run(flags, out, "--mode=bcp", "--max-updates=3")
    forget(out, "alpha_leak")
    refused(tmp_path, resume(out, "--alpha-leak=0.5"), "the run was started with --alpha-leak=0.0")
    run([], out, "--resume", "--max-updates=5")
    assert equal(weights(out), weights(tmp_path / "whole"))
    forget(out, "alpha_leak", momentum=0.5)
    refused(tmp_path, resume(out, "--max-updates=7"), "the run was started with --momentum=0.5")


def test_a_folder_is_written_by_one_process_at_a_time(flags, tmp_path):
    """A training that stands still meanwhile, and is killed in the end: nothing needs to be cleared away."""
    out, more = tmp_path / "run", ["--mode=bcp", "--goal=5", "--epochs=100000", "--save-every=5"]
    command = [sys.executable, "train.py", *flags, *more, f"--out={out}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (out / "checkpoint-previous.pt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        for wrong in ([*flags, *more], [*flags, "--overwrite"], ["--resume"]):
            message = "holds a run" if wrong == [*flags, *more] else "another process"
            refused(out, ["train.py", f"--out={out}", *wrong], message)
    finally:
        process.kill()
        process.wait()
    reached = checkpoint.load(out / "checkpoint.pt")["update"]
    updates, _ = run([], out, "--resume", f"--max-updates={reached + 5}")
    assert [u["update"] for u in updates] == list(range(1, reached + 6))


def test_a_run_that_another_process_made_while_the_text_was_prepared_is_not_replaced(flags, tmp_path, monkeypatch):
    out, join = tmp_path / "run", curriculum.join

    def slow(*args):
        monkeypatch.setattr(curriculum, "join", join)
        run(flags, out, "--max-updates=3")
        return join(*args)

    monkeypatch.setattr(curriculum, "join", slow)
    status, stderr = program("train.py", *flags, f"--out={out}", "--max-updates=2")
    assert status == 2 and "holds a run" in stderr.splitlines()[-1]  # those before it are of the other one
    assert checkpoint.load(out / "checkpoint.pt")["update"] == 3


def test_a_run_is_not_overwritten_unless_asked(flags, tmp_path):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3", "--keep-weights=evaluations")
    foreign = ("eval-notes.md", "eval-notes.json", "checkpoint-best.pt", "weights-mine.pt", "mine.part", "average.txt")
    for name in ("eval-toy.json", *foreign):
        (out / name).write_text("{}")
    assert [update for update, _ in checkpoint.kept_weights(out)] == [3]
    refused(tmp_path, ["train.py", *flags, f"--out={out}"], "holds a run")
    for wrong in (["--overwrite", "--vocab-size=60000"], ["--resume", "--seed=1"], ["--resume", "--n-layer=2"]):
        refused(tmp_path, ["train.py", *flags, f"--out={out}", *wrong], wrong[-1].split("=")[0])
    run(flags, out, "--overwrite", "--max-updates=2", "--seed=1")
    assert not (out / "eval-toy.json").exists() and not (out / "weights-3.pt").exists()
    assert all((out / name).read_text() == "{}" for name in foreign)  # what no run wrote stays
    assert len(journal.read(out)) == 4


def test_a_checkpoint_of_another_run_is_refused(flags, tmp_path, text_file):
    text = tmp_path / "other.txt"
    text.write_text(text_file.read_text() + "\n\none more\n")
    runs = {"run": [], "seed": ["--seed=1", "--pull=gradient"], "text": [f"--data={text}"], "same": ["--save-every=3"]}
    for name, more in runs.items():
        run(flags, tmp_path / name, *more, "--goal=3", "--max-updates=3")
    out, wanted = (
        tmp_path / "run",
        {"seed": ["of another run", "--seed=1", "--pull=gradient"], "text": ["not the text"]},
    )
    for name, words in wanted.items():
        (out / "checkpoint.pt").write_bytes((tmp_path / name / "checkpoint.pt").read_bytes())
        refused(tmp_path, resume(out, "--max-updates=5"), *words)
    state = checkpoint.load(tmp_path / "same/checkpoint.pt")
    checkpoint.save(out / "checkpoint.pt", {"model": state["model"]})  # such as average.pt
    refused(tmp_path, resume(out, "--max-updates=5"), "not a checkpoint to go on from")
    (out / "checkpoint.pt").write_bytes((tmp_path / "same/checkpoint.pt").read_bytes())
    run([], out, "--resume", "--max-updates=5")  # how often it is saved does not make it another run


def test_a_checkpoint_of_other_sizes_or_a_damaged_one_is_refused(flags, tmp_path):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    state = checkpoint.load(out / "checkpoint.pt")
    other = Transformer(Config(n_layer=2, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=400))
    checkpoint.save(out / "checkpoint.pt", state | {"model": other.state_dict()})
    whole = (out / "checkpoint.pt").read_bytes()
    for content, wanted in ((whole, "a checkpoint of other sizes"), (whole[:-500], "damaged"), (b"", "damaged")):
        (out / "checkpoint.pt").write_bytes(content)
        refused(tmp_path, resume(out, "--max-updates=5"), wanted)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "moments.0.exp_avg is"),
        (lambda state: state["optimizer"]["state"].pop(3), "moments.3.step is None there"),
        (lambda state: state["anchor"].__setitem__(0, state["anchor"][0].double()), "anchor.0 is torch.float64"),
        (lambda state: state["anchor"].__setitem__(0, torch.zeros(()).expand(400, 16)), "anchor.0 is Tensor there"),
        (lambda state: state["anchor"].pop(), "anchor.13 is None there"),
        (lambda state: state["alpha"].update(streak="many"), "streak is str there"),
        (lambda state: state["stream"].update(position=10**9), "it stands at no batch"),
        (lambda state: state.update(update="5"), "is str there"),
        (lambda state: state.pop("optimizer"), "not a checkpoint to go on from"),
    ],
)  # fmt: skip
def test_what_is_of_another_size_or_type_inside_is_named_though_the_digest_is_right(flags, tmp_path, change, wanted):
    out = tmp_path / "run"
    run(flags, out, "--mode=bcp", "--goal=1", "--max-updates=3")
    state = checkpoint.load(out / "checkpoint.pt")
    change(state)
    checkpoint.save(out / "checkpoint.pt", state)
    refused(tmp_path, resume(out, "--max-updates=5"), "checkpoint.pt", wanted)


def test_another_text_under_the_same_name_is_refused(flags, tmp_path, text_file):
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    run([*flags, f"--data={text}"], tmp_path / "run", "--max-updates=3")
    text.write_text(text_file.read_text() + "\n\none more\n")
    refused(tmp_path, resume(tmp_path / "run", "--max-updates=5"), "not the text that")


def sizes(out: Path, **more) -> None:
    """Change the sizes of the model in config.json."""
    config = json.loads((out / "config.json").read_text())
    config["model"] |= more
    (out / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda out: (out / "metrics.jsonl").unlink(), "metrics.jsonl: missing"),
        (
            lambda out: (out / "metrics.jsonl").write_text('{"update": 2}\n'),
            "ends at update 2, before the checkpoint's 3",
        ),
        (lambda out: (out / "metrics.jsonl").write_text('{"update": 2}\n{"upd\n{"update": 3}\n'), "line 2 is damaged"),
        (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json: missing; copy it from"),
        (lambda out: (out / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged or of another"),
        (lambda out: (out / "config.json").write_text("[]"), "config.json: damaged"),
        (lambda out: (out / "config.json").write_text("[" * 99999), "config.json: damaged"),
        (lambda out: sizes(out, n_layer=10**9), "--n-layer=1000000000: must be a whole number from 1 to"),
        (lambda out: sizes(out, n_layer="1"), "--n-layer=1: must be a whole number"),
        (lambda out: sizes(out, n_mlp=int("9" * 400)), "config.json: not of a run"),
        (lambda out: sizes(out, colour=1), "config.json: not of a run"),
        (lambda out: (out / "config.json").write_bytes(b"{\xff}"), "config.json: damaged"),
    ],
)
def test_a_run_folder_without_all_its_files_is_refused(flags, tmp_path, damage, wanted):
    run(flags, tmp_path / "run", "--max-updates=3")
    damage(tmp_path / "run")
    refused(tmp_path, resume(tmp_path / "run", "--max-updates=5"), wanted)
