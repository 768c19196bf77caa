"""Whole runs at tiny sizes: what each regime shows the model, that runs resume exactly, that wrong use is one line."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import checkpoint
import data
import train
from model import Config, Transformer

ROOT = Path(__file__).resolve().parents[1]
SIZES = [
    "--n-layer=1",
    "--n-embd=16",
    "--n-head=2",
    "--n-kv-head=1",
    "--n-mlp=24",
    "--block-size=16",
    "--batch-size=16",
]


RECIPE = "--mode=bcp --p=2 --order=reshuffled --threshold=1000 --patience=1 --goal-rel=0.98"  # E3's best


@pytest.fixture
def flags(text_file, cache):
    """Flags of a run that takes a second."""
    return [f"--data={text_file}", f"--cache={cache}", "--vocab-size=400", "--device=cpu", *SIZES, "--lr=0.01",
            "--warmup=3", "--eval-every=1000", "--norms-every=1"]  # fmt: skip


def run(flags, out, *more) -> tuple[list[dict], list[dict]]:
    """Train into `out`; the update and the evaluation records of its metrics.jsonl."""
    assert train.main(train.get_args([*flags, f"--out={out}", *more])) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], [r for r in records if "val_loss" in r]


def weights(out) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoint.pt")["model"]


def n_batches(flags, tmp_path) -> int:
    """How many batches the text of these flags makes."""
    args = train.get_args([*flags, f"--out={tmp_path / 'none'}"])
    return train.start(args).stream.n_batches


# --- The regimes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "curriculum", "bcp"])
@pytest.mark.parametrize("order", [None, "curriculum", "random", "reshuffled"])
def test_every_batch_once_an_epoch_in_the_wanted_order(flags, tmp_path, mode, order):
    """Batches are numbered by their place in the text; only `reshuffled` visits them otherwise, anew in every epoch."""
    N = n_batches(flags, tmp_path)
    wanted = [f"--order={order}"] if order else []
    updates, _ = run(flags, tmp_path / "run", f"--mode={mode}", *wanted, "--epochs=2", "--max-repeats=1")
    assert len(updates) == 2 * N and {u["repeat"] for u in updates} == {1}
    one, two = ([u["batch"] for u in updates if u["epoch"] == e] for e in (1, 2))
    in_order = list(range(N))
    assert sorted(one) == sorted(two) == in_order
    if order == "reshuffled" or (order is None and mode == "random"):
        assert one != two and in_order not in (one, two)
    else:
        assert one == two == in_order
    if mode != "bcp":
        assert {u["alpha"] for u in updates} == {u["pull_norm"] for u in updates} == {None}


def test_curriculum_repeat_shows_each_batch_ten_times_running_in_one_pass(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    updates, _ = run(flags, tmp_path / "run", "--mode=curriculum-repeat")
    assert [u["batch"] for u in updates] == [batch for batch in range(N) for _ in range(10)]
    assert [u["repeat"] for u in updates] == N * list(range(1, 11))
    assert {u["epoch"] for u in updates} == {1}


def test_all_regimes_have_the_same_budget_and_max_updates_cuts_it_without_rescaling(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    lrs = {}
    for mode in ("random", "curriculum", "curriculum-repeat", "bcp"):
        whole, _ = run(flags, tmp_path / mode, f"--mode={mode}", "--epochs=2", "--lr-schedule=cosine", "--goal=5")
        assert len(whole) == 2 * N and whole[-1]["tokens"] == 2 * N * 16 * 16
        lrs[mode] = [u["lr"] for u in whole]
    assert lrs["random"] == lrs["curriculum"] == lrs["curriculum-repeat"] == lrs["bcp"]
    part, _ = run(flags, tmp_path / "cut", "--mode=random", "--epochs=2", "--lr-schedule=cosine", "--max-updates=9")
    assert [u["lr"] for u in part] == lrs["random"][:9]


def test_bcp_repeats_a_batch_until_alpha_has_converged(flags, tmp_path):
    updates, _ = run(flags, tmp_path / "run", "--mode=bcp", "--goal=5.6", "--epochs=3", "--eta=0.5", "--max-repeats=30")
    batches = sorted({(u["epoch"], u["batch"]) for u in updates})
    assert len(batches) > 3 and [batch for _, batch in batches[:4]] == [0, 1, 2, 3]
    for epoch, batch in batches[:-1]:  # the last one may have been cut by the budget
        alphas = [1.0] + [u["alpha"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        losses = [u["loss"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        falls, stop = 0, None
        for k in range(1, len(alphas)):
            before = max(alphas[k - 1], 0.0)
            assert alphas[k] == pytest.approx(before + 0.5 * (losses[k - 1] - 5.6), abs=1e-12)
            falls = falls + 1 if alphas[k] < before else 0
            if falls >= 2 and alphas[k] < 1:
                stop = k
                break
        assert stop == len(losses) or len(losses) == 30  # it ends at the update that brings convergence, not later


def test_the_recipe_leaves_a_batch_at_the_first_loss_below_a_goal_within_reach(flags, tmp_path):
    """Whatever alpha is: its threshold is out of sight, and it falls exactly when the loss is below the goal."""
    goal, share = 5.0, 0.98  # reached by some batches at once, by others not at all
    updates, _ = run(flags, tmp_path / "run", *RECIPE.split(), f"--goal={goal}", "--epochs=8")
    visits: dict[tuple, list[dict]] = {}
    for u in updates:
        visits.setdefault((u["epoch"], u["batch"]), []).append(u)
    *whole, _ = visits.values()  # the last one may have been cut by the budget
    for repeats in whole:
        own = max(goal, share * repeats[0]["loss"])
        alphas, falls = [1.0] + [u["alpha"] for u in repeats], [u["loss"] < own for u in repeats]
        assert falls == [False] * (len(repeats) - 1) + [True]
        for before, after, u in zip(alphas, alphas[1:], repeats, strict=False):
            assert after == pytest.approx(before + 0.1 * (u["loss"] - own), abs=1e-12)
    above = [repeats[0]["loss"] > goal for repeats in whole]
    assert min(map(len, whole)) == 1 and max(map(len, whole)) > 1 and 0 < sum(above) < len(above)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert (config["order"], config["p"], config["C"]) == ("reshuffled", 2, 0.1)


def test_fact_1_alpha_is_one_plus_eta_times_the_summed_excess(flags, tmp_path):
    """Unrolled: alpha_n = 1 + eta sum (L_k - goal). So, with threshold 1, a batch converges when its mean loss over all
    repeats is down to the goal, whatever eta is."""
    for eta in (0.02, 0.2):
        out = tmp_path / f"eta{eta}"
        updates, _ = run(flags, out, "--mode=bcp", "--goal=5.5", "--epochs=3", f"--eta={eta}")
        batches = {}
        for u in updates:
            batches.setdefault((u["epoch"], u["batch"]), []).append(u)
        finished = list(batches.values())[:-1]
        assert len(finished) >= 2
        for repeats in finished:
            assert min(u["alpha"] for u in repeats) > 0  # no clamp reached
            excess = [u["loss"] - 5.5 for u in repeats]
            for n, u in enumerate(repeats, 1):
                assert u["alpha"] == pytest.approx(1 + eta * sum(excess[:n]), abs=1e-9)
            assert sum(excess) < 0
            if len(excess) > 2 and max(excess[-3:-1]) < 0:  # patience was met one update before: not converged by then
                assert sum(excess[:-1]) >= 0


@pytest.mark.parametrize("method", [["--p=1"], ["--p=2"], ["--p=1", "--prox"]])
def test_updates_equal_a_plain_reference(flags, tmp_path, method):
    """The method written out again from its description, one weight tensor at a time, without bcp.py."""
    more = ["--mode=bcp", "--goal=5.8", "--C=0.001", "--max-updates=25", "--lr-schedule=cosine", *method]
    updates, _ = run(flags, tmp_path / "run", *more)
    state = train.start(train.get_args([*flags, f"--out={tmp_path / 'again'}", *more]))
    torch.manual_seed(0)
    model = Transformer(state.model.config)
    stream, budget = state.stream, state.budget
    decay = [w for w in model.parameters() if w.dim() > 1]
    plain = [w for w in model.parameters() if w.dim() == 1]
    adamw = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), foreach=False, fused=False)  # fmt: skip
    alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    for k in range(25):
        factor = (k + 1) / 3 if k < 3 else 0.5 * (1 + math.cos(math.pi * (k - 3) / (budget - 3)))
        for group in adamw.param_groups:
            group["lr"] = 0.01 * factor
        x, y = map(torch.from_numpy, stream.blocks())
        adamw.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        new = alpha + 0.1 * (loss.item() - 5.8)
        for w in model.parameters():
            w.grad *= max(new, 0.0)
        adamw.step()
        C = 0.001 * factor
        with torch.no_grad():
            for w, a in zip(model.parameters(), anchor, strict=True):
                distance = w - a
                if "--prox" in method:
                    w.copy_(a + distance.sign() * (distance.abs() - C).clamp(min=0))
                else:
                    w -= C * (distance.sign() if "--p=1" in method else distance)
        assert updates[k]["batch"] == stream.batch and updates[k]["loss"] == pytest.approx(loss.item(), abs=5e-3)
        falls = falls + 1 if new < alpha else 0
        alpha = max(new, 0.0)
        if falls >= 2 and alpha < 1:
            stream.advance()
            alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    assert updates[-1]["batch"] >= 1  # at least one batch had converged
    for name, w in weights(tmp_path / "run").items():  # (sign() amplifies rounding where a weight is near its anchor)
        torch.testing.assert_close(w, model.state_dict()[name], atol=5e-3, rtol=0)


def test_norms_tell_how_far_step_pull_and_anchor_are(flags, tmp_path):
    updates, _ = run(flags, tmp_path / "run", "--mode=bcp", "--C=0.5", "--p=2", "--max-updates=1", "--warmup=0")
    u = updates[0]  # one step s from the anchor, pulled back by half of it
    assert u["pull_norm"] == pytest.approx(u["step_norm"] / 2, rel=1e-4)
    assert u["anchor_dist"] == pytest.approx(u["step_norm"] / 2, rel=1e-4) and u["step_norm"] > 0


def test_training_learns(flags, tmp_path):
    _, evaluations = run(flags, tmp_path / "run", "--mode=random", "--epochs=4")
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 1.5
    assert evaluations[0]["val_loss"] == pytest.approx(math.log(400), abs=0.2)


def test_gradient_accumulation_equals_one_large_batch(flags, tmp_path):
    whole, _ = run(flags, tmp_path / "whole", "--mode=bcp", "--max-updates=8")
    parts, _ = run(flags, tmp_path / "parts", "--mode=bcp", "--max-updates=8", "--grad-accum=4")
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["alpha"] == pytest.approx(other["alpha"], abs=1e-4)


def test_average_is_the_mean_of_the_last_evaluations_weights(flags, tmp_path):
    out, more = tmp_path / "run", ["--mode=random", "--eval-every=2", "--average-last=2", "--save-every=4"]
    run(flags, out, *more, "--max-updates=12")
    one, two = (checkpoint.load(out / f"weights-{update}.pt")["model"] for update in (10, 12))
    average = checkpoint.load(out / "average.pt")["model"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["update"] == 12 and 0 < last["average_val_loss"] < 9
    for name, w in average.items():
        torch.testing.assert_close(w, (one[name] + two[name]) / 2)
    kept = sorted(int(file.stem.removeprefix("weights-")) for file in out.glob("weights-*.pt"))
    assert kept == [6, 8, 10, 12]  # 6 and 8 for the checkpoint before the last, at update 8


def test_a_run_killed_just_before_its_average_was_written_gets_it_when_resumed(flags, tmp_path):
    out = tmp_path / "run"
    run(flags, out, "--mode=random", "--eval-every=2", "--average-last=2", "--max-updates=6")
    average = (out / "average.pt").read_bytes()
    (out / "average.pt").unlink()
    run([], out, "--resume")
    assert (out / "average.pt").read_bytes() == average


def test_learning_rate_schedules():
    factors = [train.lr_factor(update, 100, 10, "constant") for update in (0, 4, 9, 10, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert [train.lr_factor(u, 110, 10, "cosine") for u in (10, 60)] == pytest.approx([1.0, 0.5])
    assert [train.lr_factor(u, 100, 10, "wsd") for u in (10, 80, 90, 99)] == pytest.approx([1.0, 1.0, 0.5, 0.05])


def test_a_goal_that_is_too_low_is_said_and_a_better_one_suggested(flags, tmp_path, capsys):
    run(flags, tmp_path / "run", "--mode=bcp", "--goal=0.1", "--max-repeats=4", "--max-updates=12")
    out = capsys.readouterr().out
    assert "unconverged         3 of 3" in out and "--goal=0.1 is too low" in out
    suggestion = float(out.split("try --goal=")[1].split()[0])
    updates, _ = run(flags, tmp_path / "better", "--mode=bcp", f"--goal={suggestion}", "--max-updates=12")
    assert 0.1 < suggestion < 6.5 and updates[-1]["batch"] >= 1


def one_line(capsys, *wanted: str) -> None:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("train.py: error: "), err
    assert [part for part in wanted if part not in err] == [], err


def refused(capsys, wrong: list[str], *wanted: str) -> None:
    """These flags end in one line that says what is wanted, with exit status 2 and nothing of the run overwritten."""
    out = Path(next(flag for flag in wrong if flag.startswith("--out=")).removeprefix("--out="))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args(wrong))
    assert stopped.value.code == 2
    one_line(capsys, *wanted)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


# --- Saving and resuming ----------------------------------------------------------------------------------------------


def same_run(one: Path, other: Path) -> None:
    for name, w in weights(one).items():
        assert torch.equal(w, weights(other)[name]), name
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


@pytest.mark.parametrize("mode", ["random", "curriculum", "curriculum-repeat", "bcp"])
def test_resuming_gives_bit_identical_weights(flags, tmp_path, mode):
    more = [f"--mode={mode}", "--goal=4.5", "--lr-schedule=cosine", "--eval-every=7", "--average-last=2"]
    run(flags, tmp_path / "whole", *more, "--max-updates=31")
    for stop in (13, 14, 31):
        run(*((flags, tmp_path / "parts", *more) if stop == 13 else ([], tmp_path / "parts", "--resume")),
            f"--max-updates={stop}")  # fmt: skip
        if mode in ("curriculum-repeat", "bcp") and stop == 13:  # in the middle of a batch's repeats
            state = checkpoint.load(tmp_path / "parts" / "checkpoint.pt")
            assert state["progress"]["repeat"] > 0 and len(state["anchor"]) == (mode == "bcp") * 14
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-3:] for name in ("whole", "parts"))
    assert whole == parts and ['"loss"' in whole[0], '"toy"' in whole[1], '"average_toy"' in whole[2]] == [True] * 3
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(tmp_path / "parts")[name]), name
    assert torch.equal(*(checkpoint.load(tmp_path / name / "average.pt")["model"]["model.norm.weight"]
                         for name in ("whole", "parts")))  # fmt: skip


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
    same_run(tmp_path / "whole", tmp_path / "parts")


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
    saved = checkpoint.load(out / "checkpoint.pt")["progress"]["update"]
    assert saved >= 39
    run([], out, "--resume", f"--max-updates={saved + 10}")
    more = ["--mode=bcp", "--goal=5.5", "--epochs=300", "--eval-every=100000"]
    run(flags, tmp_path / "whole", *more, f"--max-updates={saved + 10}")
    same_run(tmp_path / "whole", out)


def test_resume_without_a_checkpoint_starts_over_and_on_a_finished_run_says_so(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--resume", "--max-updates=3")  # nothing there yet
    (out / "checkpoint.pt").unlink()
    updates, _ = run(flags, out, "--resume", "--max-updates=3")
    assert [u["update"] for u in updates] == [1, 2, 3]
    capsys.readouterr()
    run([], out, "--resume", "--max-updates=3")
    assert "is finished after 3 updates" in capsys.readouterr().out


def test_a_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"x": torch.zeros(3)})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(file, {"x": torch.ones(3)})
    assert torch.equal(checkpoint.load(file)["x"], torch.zeros(3))


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


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken_only_when_asked(flags, tmp_path, capsys):
    more = ["--mode=bcp", "--save-every=4"]
    run(flags, tmp_path / "whole", *more, "--max-updates=14")
    out = tmp_path / "parts"
    run(flags, out, *more, "--max-updates=10")  # checkpoints at 8 and 10
    damaged = (out / "checkpoint.pt").read_bytes()[:-7] + b"x" * 7
    (out / "checkpoint.pt").write_bytes(damaged)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args([f"--out={out}", "--resume", "--max-updates=14"]))
    assert stopped.value.code == 2
    one_line(capsys, "checkpoint.pt: damaged")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    run([], out, "--resume=previous", "--max-updates=14")
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(out)[name]), name
    updates = [
        json.loads(line)["update"] for line in (out / "metrics.jsonl").read_text().splitlines() if "alpha" in line
    ]
    assert updates == list(range(1, 15))


@pytest.mark.parametrize("mode", ["curriculum-repeat", "bcp"])
def test_more_epochs_go_on_as_if_there_had_been_so_many_from_the_start(flags, tmp_path, mode):
    more = [f"--mode={mode}", "--goal=5", "--repeats=2", "--eval-every=15", "--average-last=2", "--max-repeats=5"]
    run(flags, tmp_path / "whole", *more, "--epochs=3")
    run(flags, tmp_path / "parts", *(more if mode == "bcp" else [*more[:2], *more[3:]]), "--epochs=2")
    run([], tmp_path / "parts", "--resume", "--epochs=3", "--max-updates=50")
    assert json.loads((tmp_path / "parts/config.json").read_text())["flags"]["epochs"] == 3
    run([], tmp_path / "parts", "--resume", "--max-updates=57")  # the longer budget is kept
    for file in ("checkpoint.pt", "average.pt"):
        whole, parts = (checkpoint.load(tmp_path / name / file)["model"] for name in ("whole", "parts"))
        assert all(torch.equal(w, parts[name]) for name, w in whole.items())


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        (["--seed=1", "--lr=0.5", "--prox", "--n-layer=2"], ["--seed=0", "--lr=0.01", "no --prox", "--n-layer=1"]),
        (["--epochs=3"], ["--epochs=4"]),  # fewer
        (["--eval-every=3", "--goal=4", "--order=random"], ["--eval-every=1000", "--goal=5.0", "--order=curriculum"]),
    ],
)
def test_every_changed_flag_that_would_change_the_result_is_named(flags, tmp_path, capsys, wrong, wanted):
    out = tmp_path / "run"
    run(flags, out, "--goal=5", "--epochs=4", "--max-updates=2")
    refused(capsys, [f"--out={out}", "--resume", *wrong], *wanted)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_more_epochs_are_refused_where_the_rate_spans_them(flags, tmp_path, capsys, schedule):
    out = tmp_path / "run"
    run(flags, out, f"--lr-schedule={schedule}", "--max-updates=2")
    refused(capsys, [f"--out={out}", "--resume", "--epochs=20"], "--epochs=10")


def test_a_folder_is_written_by_one_process_at_a_time(flags, tmp_path, capsys):
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
        for wrong in ([*flags, *more], [*flags, "--overwrite"], ["--resume"], ["--resume=previous"]):
            refused(capsys, [f"--out={out}", *wrong], "holds a run" if wrong == [*flags, *more] else "another process")
    finally:
        process.kill()
        process.wait()
    reached = checkpoint.load(out / "checkpoint.pt")["progress"]["update"]
    updates, _ = run([], out, "--resume", f"--max-updates={reached + 5}")
    assert [u["update"] for u in updates] == list(range(1, reached + 6))


def test_a_run_that_another_process_made_while_the_text_was_prepared_is_not_replaced(
    flags, tmp_path, capsys, monkeypatch
):
    out, join = tmp_path / "run", train.curriculum.join

    def slow(*args):
        monkeypatch.setattr(train.curriculum, "join", join)
        run(flags, out, "--max-updates=3")
        return join(*args)

    monkeypatch.setattr(train.curriculum, "join", slow)
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args([*flags, f"--out={out}", "--max-updates=2"]))
    assert stopped.value.code == 2 and "holds a run" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.load(out / "checkpoint.pt")["progress"]["update"] == 3


def test_a_checkpoint_of_another_run_is_refused(flags, tmp_path, capsys, text_file):
    text = tmp_path / "other.txt"
    text.write_text(text_file.read_text() + "\n\none more\n")
    runs = {"run": [], "seed": ["--seed=1", "--prox"], "text": [f"--data={text}"], "same": ["--save-every=3"]}
    for name, more in runs.items():
        run(flags, tmp_path / name, *more, "--max-updates=3")
    out, wanted = tmp_path / "run", {"seed": ["--seed=1", "--prox"], "text": [f"--data={text}"]}
    for name, flags_named in wanted.items():
        (out / "checkpoint.pt").write_bytes((tmp_path / name / "checkpoint.pt").read_bytes())
        refused(capsys, [f"--out={out}", "--resume", "--max-updates=5"], "of another run", *flags_named)
    state = checkpoint.load(tmp_path / "same/checkpoint.pt")
    checkpoint.save(out / "checkpoint.pt", {"model": state["model"]})  # such as average.pt
    refused(capsys, [f"--out={out}", "--resume", "--max-updates=5"], "not a checkpoint to go on from")
    (out / "checkpoint.pt").write_bytes((tmp_path / "same/checkpoint.pt").read_bytes())
    run([], out, "--resume", "--max-updates=5")  # how often it is saved does not make it another run


def test_another_text_under_the_same_name_is_refused(flags, tmp_path, capsys, text_file):
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    run([*flags, f"--data={text}"], tmp_path / "run", "--max-updates=3")
    text.write_text(text_file.read_text() + "\n\none more\n")
    refused(capsys, [f"--out={tmp_path / 'run'}", "--resume", "--max-updates=5"], "not the text that")


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
        (lambda out: (out / "config.json").write_bytes(b"{\xff}"), "config.json: damaged"),
    ],
)
def test_a_run_folder_without_all_its_files_is_refused(flags, tmp_path, capsys, damage, wanted):
    run(flags, tmp_path / "run", "--max-updates=3")
    damage(tmp_path / "run")
    refused(capsys, [f"--out={tmp_path / 'run'}", "--resume", "--max-updates=5"], wanted)


def test_an_emptied_record_is_how_to_go_on_without_it(flags, tmp_path):
    run(flags, tmp_path / "run", "--max-updates=3")
    (tmp_path / "run/metrics.jsonl").write_text("")
    updates, _ = run([], tmp_path / "run", "--resume", "--max-updates=5")
    assert [u["update"] for u in updates] == [4, 5]


# --- Loss and gradient that are not finite ----------------------------------------------------------------------------


def poison(monkeypatch, updates, kind: str) -> None:
    """From the whole run's updates (counted from 1 over all calls), make those given bad."""
    ordinary, calls = train.loss_and_gradient, []

    def poisoned(state, forward, *args, **stop):
        L, stop = ordinary(state, forward, *args, **stop)
        calls.append(L)
        if len(calls) in updates:
            weight = next(forward.parameters())
            weight.grad[0, 0] = math.nan if kind == "nan" else math.inf
            return [math.nan if kind == "nan" else L, stop]
        return [L, stop]

    monkeypatch.setattr(train, "loss_and_gradient", poisoned)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
@pytest.mark.parametrize("mode", ["random", "curriculum-repeat", "bcp"])
def test_an_update_that_is_not_finite_changes_nothing_and_is_recorded(flags, tmp_path, monkeypatch, mode, kind):
    more = [f"--mode={mode}", "--goal=5", "--p=2", "--repeats=3", "--save-every=1"]
    run(flags, tmp_path / "run", *more, "--max-updates=4")
    before = checkpoint.load(tmp_path / "run/checkpoint.pt")
    poison(monkeypatch, {1}, kind)  # the next one
    updates, _ = run([], tmp_path / "run", "--resume", "--max-updates=5")
    after = checkpoint.load(tmp_path / "run/checkpoint.pt")
    for name, w in before["model"].items():
        assert torch.equal(w, after["model"][name])
    for slot, moments in before["optimizer"]["state"].items():
        assert all(torch.equal(value, after["optimizer"]["state"][slot][name]) for name, value in moments.items())
    old, new = before["alpha"], after["alpha"]
    assert (new["alpha"], new["falls"]) == (old["alpha"], old["falls"])
    assert new["repeats"] == old["repeats"] + (mode == "bcp")
    bad = updates[-1]
    assert bad["update"] == 5 and ("nan" if kind == "nan" else "inf") in bad["skipped"]
    assert bad["batch"] == {"random": updates[4]["batch"], "curriculum-repeat": 1, "bcp": 0}[mode]
    assert (bad["loss"] is None) == (kind == "nan") and bad["alpha"] is None
    assert "NaN" not in (tmp_path / "run/metrics.jsonl").read_text()
    repeats = {"random": 0, "curriculum-repeat": 2, "bcp": 5}[mode]  # of the batch that comes next
    assert after["progress"]["repeat"] == repeats and after["progress"]["bad_updates"] == 1
    updates, _ = run([], tmp_path / "run", "--resume", "--max-updates=7")
    assert all(math.isfinite(u["loss"]) and "skipped" not in u for u in updates[5:])
    assert checkpoint.load(tmp_path / "run/checkpoint.pt")["progress"]["bad_updates"] == 0


def test_a_batch_that_is_never_finite_is_left_after_max_repeats(flags, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(3, 8)), "nan")
    more = ["--goal=1", "--max-repeats=4", "--max-bad-updates=6", "--max-updates=10"]
    updates, _ = run(flags, tmp_path / "run", *more)
    assert [u["batch"] for u in updates] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [u["update"] for u in updates if "skipped" in u] == [3, 4, 5, 6, 7]


def test_ten_bad_updates_in_a_row_stop_the_run(flags, tmp_path, monkeypatch, capsys):
    out, more = tmp_path / "run", ["--mode=bcp", "--goal=5", "--save-every=6"]
    run(flags, tmp_path / "whole", *more, "--max-updates=6")
    poison(monkeypatch, {2, 3, 4, *range(7, 40)}, "nan")
    capsys.readouterr()
    assert train.main(train.get_args([*flags, *more, f"--out={out}"])) == 1
    err = capsys.readouterr().err.splitlines()
    wanted = "train.py: 10 updates in a row were skipped, the last (update 16, batch 0) for its loss nan"
    assert err[-1].startswith(wanted) and f"--resume --out={out}" in err[-1]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["update"] for r in records if "skipped" in r] == [2, 3, 4, *range(7, 17)]
    assert all(torch.isfinite(w).all() for w in weights(out).values())
    monkeypatch.undo()
    updates, _ = run([], out, "--resume", "--max-updates=20")  # whatever it was has passed
    assert [u["update"] for u in updates] == list(range(1, 21))


def test_run_folders_are_numbered_and_hold_what_later_programs_need(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train.main(train.get_args([*flags, "--mode=bcp", "--p=2", "--max-updates=2"])) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["bcp-p2-1", "bcp-p2-2"]
    updates, _ = run([], Path("out/bcp-p2-1"), "--resume", "--max-updates=3")
    assert [u["update"] for u in updates] == [1, 2, 3]
    files = {path.name for path in Path("out/bcp-p2-1").iterdir()}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "checkpoint-previous.pt",
        "tokenizer.json",
        "lock",
    }
    config = json.loads(Path("out/bcp-p2-1/config.json").read_text())
    assert config["flags"]["p"] == 2 and config["flags"]["seed"] == 0 and config["versions"]["torch"]
    first = json.loads(Path("out/bcp-p2-1/metrics.jsonl").read_text().splitlines()[1])
    wanted = "update epoch batch repeat loss alpha lr step_norm pull_norm anchor_dist tokens"
    assert set(wanted.split()) <= set(first)


def test_training_from_a_prepared_folder_needs_no_tokenizer_library(flags, text_file, cache, tmp_path):
    prepared = data.prepare(str(text_file), cache, vocab_size=400, quiet=True)
    program = ("import sys; sys.modules['rustbpe'] = sys.modules['tiktoken'] = None\n"
               "import train; sys.exit(train.main(train.get_args(sys.argv[1:])))")  # fmt: skip
    command = [
        sys.executable,
        "-c",
        program,
        f"--data={prepared}",
        *SIZES,
        "--max-updates=2",
        f"--out={tmp_path / 'r'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        ("--p=3", "--p: invalid choice: 3 (choose from 1, 2)"),
        ("--eta=-1", "--eta: '-1': must be a number above 0"),
        ("--C=nan", "--C: 'nan': must be a number of at least 0"),
        ("--C=inf", "--C: 'inf': must be a number of at least 0"),
        ("--batch-size=0", "--batch-size: '0': must be a whole number of at least 1"),
        ("--epochs=two", "--epochs: 'two': must be a whole number"),
        ("--device=tpu", "--device: 'tpu': must be auto, cpu, cuda, cuda:N or mps"),
        ("--mode=sorted", "--mode: invalid choice"),
        ("--vocab-size=99", "--vocab-size: '99': must be a whole number of at least 257 and at most 65536"),
        ("--beta2=1", "--beta2: '1': must be"),
        ("--resume", "--resume: needs --out=FOLDER"),
        ("--goal", "--goal: expected one argument"),
        ("--epoch=3", "unrecognized arguments: --epoch=3"),
    ],
)
def test_wrong_flags_are_one_line_before_torch_is_imported(wrong, wanted):
    command = [sys.executable, "-X", "importtime", "train.py", wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(lines) == 1 and wanted in lines[0]
    assert "| torch" not in done.stderr and "| numpy" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        (["--data=nowhere"], "--data: 'nowhere' is no corpus; it takes toy, babylm-10m"),
        (["--data=EMPTY"], "--data"),
        (["--data=LATIN1"], "not UTF-8 at byte 3"),
        (["--vocab-size=60000"], "--vocab-size"),
        (["--block-size=100000"], "--block-size=100000"),
        (["--device=cuda:99"], "--device=cuda:99: not on this machine; it has cpu"),
        (["--n-head=3"], "--n-embd=16: must be an even multiple of --n-head=3"),
        (["--grad-accum=3"], "--grad-accum=3: must divide --batch-size=16"),
        (["--out=FILE"], "is a file; give a folder"),
    ],
)
def test_wrong_inputs_are_one_line_and_leave_nothing_behind(flags, tmp_path, capsys, wrong, wanted):
    files = {"EMPTY": b"", "LATIN1": b"caf\xe9\n", "FILE": b"x"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    for name in files:
        wrong = [flag.replace(name, str(tmp_path / name)) for flag in wrong]
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args([*flags, f"--out={out}", *wrong]))
    assert stopped.value.code == 2 and not out.exists()
    one_line(capsys, wanted)


def test_a_run_is_not_overwritten_unless_asked(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    (out / "eval-toy.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for wrong in ([], ["--overwrite", "--vocab-size=60000"], ["--resume", "--seed=1"], ["--resume", "--n-layer=2"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train.main(train.get_args([*flags, f"--out={out}", *wrong]))
        assert stopped.value.code == 2
        one_line(capsys, {0: "holds a run", 1: wrong[-1].split("=")[0]}[bool(wrong)] if wrong else "holds a run")
        assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    run(flags, out, "--overwrite", "--max-updates=2", "--seed=1")
    assert not (out / "eval-toy.json").exists() and len((out / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_checkpoint_of_other_sizes_or_a_damaged_one_is_refused(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    state = checkpoint.load(out / "checkpoint.pt")
    other = Transformer(Config(n_layer=2, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=400))
    checkpoint.save(out / "checkpoint.pt", state | {"model": other.state_dict()})
    whole = (out / "checkpoint.pt").read_bytes()
    for content, wanted in ((whole, "a checkpoint of other sizes"), (whole[:-500], "damaged"), (b"", "damaged")):
        (out / "checkpoint.pt").write_bytes(content)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train.main(train.get_args([f"--out={out}", "--resume", "--max-updates=5"]))
        assert stopped.value.code == 2 and (out / "checkpoint.pt").read_bytes() == content
        one_line(capsys, wanted)


def test_real_text_runs_with_a_goal_made_for_it(shared, cache, tmp_path):
    """A few small files of child speech and stories; speaker labels do not count in the difficulty."""
    part = tmp_path / "text"
    part.mkdir()
    for name in ("childes/NA_Bliss.txt", "children_stories/african_storybook_en.txt"):
        (part / Path(name).name).write_bytes((shared / "corpus" / name).read_bytes())
    flags = [f"--data={part}", f"--cache={cache}", "--vocab-size=1024", "--device=cpu", *SIZES]
    updates, evaluations = run(flags, tmp_path / "run", "--mode=bcp", "--max-updates=20")
    assert len(updates) == 20 and evaluations[-1]["toy"] is None and evaluations[-1]["val_loss"] > 0
    corpus = data.open_prepared(data.prepare(str(part), cache, vocab_size=1024, quiet=True))
    assert corpus.line_label.any() and not corpus.line_label.all()
    goal = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]["goal"]
    assert updates[-1]["loss"] < updates[0]["loss"] and 3 < goal < 5


# --- Remedies and controls --------------------------------------------------------------------------------------------


def reference(flags, out, more, updates: int, step) -> tuple[dict, list[float]]:
    """Weights and losses after some updates on the first batch; step(state, gradients, alpha, L) gives what AdamW gets:
    gradients, learning rate, and weight decay as a share of the weights."""
    state = train.start(train.get_args([*flags, f"--out={out}", *more]))
    model, moments, alpha, losses = state.model, {}, 1.0, []
    x, y = (torch.from_numpy(part) for part in state.stream.blocks())
    for n in range(1, updates + 1):
        model.zero_grad()
        loss = model(x, y)
        loss.backward()
        L = loss.item()
        losses.append(L)
        gradients = {name: w.grad.clone() for name, w in model.named_parameters()}
        gradients, rate, decay, alpha = step(state, gradients, alpha, L, n)
        with torch.no_grad():
            for name, w in model.named_parameters():
                m, v = moments.get(name, (0, 0))
                g = gradients[name]
                m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
                moments[name] = m, v
                w.mul_(1 - (decay if w.dim() >= 2 else 0))
                w.sub_(rate * (m / (1 - 0.9**n)) / ((v / (1 - 0.95**n)).sqrt() + 1e-8))
    return dict(model.named_parameters()), losses


def clipped(gradients: dict) -> dict:
    norm = sum((g**2).sum() for g in gradients.values()).sqrt()
    return {name: g * min(1.0, 1 / (norm.item() + 1e-6)) for name, g in gradients.items()}


def check_reference(flags, tmp_path, more, step) -> None:
    more = ["--mode=bcp", "--goal=5.0", "--C=0", "--warmup=0", "--lr=0.003", "--eta=0.4", "--max-updates=6", *more]
    updates, _ = run(flags, tmp_path / "run", *more)
    assert {u["batch"] for u in updates} == {0}
    expected, losses = reference(flags, tmp_path / "again", more, 6, step)
    assert [u["loss"] for u in updates] == pytest.approx(losses, abs=1e-4)
    for name, w in weights(tmp_path / "run").items():
        torch.testing.assert_close(w, expected[name].detach(), atol=2e-5, rtol=1e-3)


def test_alpha_on_the_rate_scales_the_step_and_not_the_decay(flags, tmp_path):
    def step(state, gradients, alpha, L, n):
        alpha += 0.4 * (L - 5.0)
        return clipped(gradients), 0.003 * alpha, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-on=lr"], step)


def test_alpha_on_nothing_leaves_plain_adamw(flags, tmp_path):
    def step(state, gradients, alpha, L, n):
        return clipped(gradients), 0.003, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-on=none"], step)


def test_a_leak_and_a_relative_goal_reach_alpha(flags, tmp_path):
    first = []

    def step(state, gradients, alpha, L, n):
        first.append(L)
        alpha += 0.4 * (L - 0.7 * first[0]) + 0.2 * (1 - alpha)
        return {name: alpha * g for name, g in clipped(gradients).items()}, 0.003, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-leak=0.2", "--goal=0.1", "--goal-rel=0.7"], step)


def test_replayed_rows_add_their_share_of_the_gradient_and_alpha_looks_at_the_new_ones(flags, tmp_path):
    def step(state, gradients, alpha, L, n):
        assert state.stream.batch_size == 12  # of 16 rows, 4 are replayed
        alpha += 0.4 * (L - 5.0)
        x, y = (torch.from_numpy(part) for part in state.stream.blocks(state.stream.replay(4, 2.0, n - 1)))
        state.model.zero_grad()
        state.model(x, y).backward()
        replayed = clipped({name: w.grad for name, w in state.model.named_parameters()})
        new = clipped(gradients)
        return {name: 0.75 * alpha * new[name] + 0.25 * replayed[name] for name in new}, 0.003, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--replay=0.25", "--replay-power=2"], step)


def test_a_share_of_the_text_keeps_the_budget_of_the_whole(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    updates, _ = run(flags, tmp_path / "run", "--mode=random", "--data-share=0.3", "--epochs=2")
    assert len(updates) == 2 * N
    seen = {u["batch"] for u in updates}
    assert 0.2 * N < len(seen) <= 0.3 * N + 1 and max(u["epoch"] for u in updates) >= 6


def test_learn_focus_review_trains_more_on_what_is_hard(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    updates, _ = run(flags, tmp_path / "run", "--mode=lfr", "--focus-share=0.3", "--epochs=3")
    focus = [u for u in updates if u["batch"] is None]
    assert len(updates) == 3 * N and {u["epoch"] for u in focus} == {2}
    assert len(focus) == round(0.3 * N)
    by_epoch = {e: [u["loss"] for u in updates if u["epoch"] == e] for e in (2, 3)}
    assert sum(by_epoch[2]) / len(by_epoch[2]) > sum(by_epoch[3]) / len(by_epoch[3])


STREAM = ["--mode=bcp", "--goal=6.5", "--stream", "--replay=0.25", "--buffer-tokens=512"]


def test_a_text_that_streams_by_is_met_once_and_then_the_buffer(flags, tmp_path, capsys):
    updates, _ = run(flags, tmp_path / "run", *STREAM, "--epochs=4")
    assert "in 1.00 passes" in capsys.readouterr().out
    batches = [u["batch"] for u in updates]
    N = batches.index(None)
    assert set(batches[N:]) == {None} and batches[:N] == sorted(batches[:N]) and len(updates) > N
    assert len({u["epoch"] for u in updates}) == 2


@pytest.mark.parametrize(
    "more", [["--mode=lfr", "--focus-share=0.5"], ["--mode=bcp", "--goal=5.5", "--replay=0.25"], STREAM]
)
def test_remedies_resume_exactly(flags, tmp_path, more):
    more = [*more, "--epochs=2", "--track-forgetting=5"]
    whole, _ = run(flags, tmp_path / "whole", *more)
    cut = len(whole) - 7
    run(flags, tmp_path / "cut", *more, f"--max-updates={cut}")
    again, _ = run([], tmp_path / "cut", "--resume", f"--max-updates={len(whole)}")
    assert [u["loss"] for u in again] == [u["loss"] for u in whole]
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(tmp_path / "cut")[name])
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    tracked = [[json.loads(line) for line in text if "forgetting" in line] for text in texts]
    assert tracked[0] == tracked[1] and len(tracked[0]) == len(whole) // 5


def test_forgetting_is_the_loss_of_batches_met_before(flags, tmp_path, capsys):
    out = tmp_path / "run"
    updates, _ = run(flags, out, "--mode=curriculum", "--epochs=1", "--track-forgetting=6", "--max-updates=18")
    assert "forgetting" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "forgetting" in record][-1]
    state = train.start(train.get_args([*flags, "--mode=curriculum", f"--out={tmp_path / 'again'}"]))
    state.model.load_state_dict(weights(out))
    assert last["update"] == 18 and len(last["forgetting"]) >= 5
    for batch, since, left, now in last["forgetting"]:
        assert updates[batch]["loss"] == left and updates[batch]["update"] == 18 - since
        state.stream.seek(0, batch)
        x, y = (torch.from_numpy(part) for part in state.stream.blocks())
        assert state.model(x, y).item() == pytest.approx(now, abs=1e-5)
