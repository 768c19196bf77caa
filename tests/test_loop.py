"""Whole runs at tiny sizes: what each regime shows the model, the method against references written out again, rates,
norms, the report, and what is taken in the place of alpha."""

import contextlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import NANO, n_batches, run, weights

import data
import journal
import train
from flags import get_args
from model import Transformer

RECIPE = "--recipe=within-reach"  # E3's best


# --- The regimes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "curriculum", "bcp"])
@pytest.mark.parametrize("order", [None, "curriculum", "shuffled-once", "random"])
def test_every_batch_once_an_epoch_in_the_wanted_order(flags, tmp_path, mode, order):
    """Batches are numbered by their place in the text; only `random` visits them otherwise, anew in every epoch."""
    N = n_batches(flags, tmp_path)
    wanted = [f"--order={order}"] if order else []
    updates, _ = run(flags, tmp_path / "run", f"--mode={mode}", *wanted, "--epochs=2", "--max-repeats=1")
    assert len(updates) == 2 * N and {u["repeat"] for u in updates} == {1}
    one, two = ([u["batch"] for u in updates if u["epoch"] == e] for e in (1, 2))
    in_order = list(range(N))
    assert sorted(one) == sorted(two) == in_order
    if order == "random" or (order is None and mode == "random"):
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
    assert [u["done"] for u in updates] == N * ([None] * 9 + ["repeated"])
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
    updates, _ = run(flags, tmp_path / "run", "--recipe=poster", "--goal=5.6", "--epochs=3", "--eta=0.5",
                     "--max-repeats=30")  # fmt: skip
    batches = sorted({(u["epoch"], u["batch"]) for u in updates})
    assert len(batches) > 3 and [batch for _, batch in batches[:4]] == [0, 1, 2, 3]
    for epoch, batch in batches[:-1]:  # the last one may have been cut by the budget
        alphas = [1.0] + [u["alpha"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        losses = [u["loss"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        dones = [u["done"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        falls, stop = 0, None
        for k in range(1, len(alphas)):
            before = max(alphas[k - 1], 0.0)
            assert alphas[k] == pytest.approx(before + 0.5 * (losses[k - 1] - 5.6), abs=1e-12)
            falls = falls + 1 if alphas[k] < before else 0
            if falls >= 2 and alphas[k] < 1:
                stop = k
                break
        assert stop == len(losses) or len(losses) == 30  # it ends at the update that brings convergence, not later
        assert dones == [None] * (len(losses) - 1) + ["converged" if stop else "unconverged"]


def test_the_recipe_leaves_a_batch_at_the_first_loss_below_a_goal_within_reach(flags, tmp_path):
    """Whatever alpha is: its threshold is out of sight, and it falls exactly when the loss is below the goal."""
    goal, share = 5.0, 0.98  # reached by some batches at once, by others not at all
    updates, _ = run(flags, tmp_path / "run", *RECIPE.split(), f"--goal={goal}", "--epochs=8")
    *whole, _ = journal.visits(updates)  # the last one may have been cut by the budget
    for repeats in whole:
        own = max(goal, share * repeats[0]["loss"])
        alphas, falls = [1.0] + [u["alpha"] for u in repeats], [u["loss"] < own for u in repeats]
        assert falls == [False] * (len(repeats) - 1) + [True]
        for before, after, u in zip(alphas, alphas[1:], repeats, strict=False):
            assert after == pytest.approx(before + 0.1 * (u["loss"] - own), abs=1e-12)
    above = [repeats[0]["loss"] > goal for repeats in whole]
    assert min(map(len, whole)) == 1 and max(map(len, whole)) > 1 and 0 < sum(above) < len(above)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert (config["order"], config["p"], config["C"]) == ("random", 2, 0.1)


def test_fact_1_alpha_is_one_plus_eta_times_the_summed_excess(flags, tmp_path):
    """Unrolled: alpha_n = 1 + eta sum (L_k - goal). So, with threshold 1, a batch converges when its mean loss over all
    repeats is down to the goal, whatever eta is."""
    for eta in (0.02, 0.2):
        out = tmp_path / f"eta{eta}"
        updates, _ = run(flags, out, "--recipe=poster", "--goal=5.5", "--epochs=3", f"--eta={eta}")
        *finished, _ = journal.visits(updates)
        assert len(finished) >= 2
        for repeats in finished:
            assert min(u["alpha"] for u in repeats) > 0  # no clamp reached
            excess = [u["loss"] - 5.5 for u in repeats]
            for n, u in enumerate(repeats, 1):
                assert u["alpha"] == pytest.approx(1 + eta * sum(excess[:n]), abs=1e-9)
            assert sum(excess) < 0
            if len(excess) > 2 and max(excess[-3:-1]) < 0:  # patience was met one update before: not converged by then
                assert sum(excess[:-1]) >= 0


def test_real_text_runs_with_a_goal_made_for_it(shared, cache, tmp_path):
    """A few small files of child speech and stories; speaker labels do not count in the difficulty."""
    part = tmp_path / "text"
    part.mkdir()
    for name in ("childes/NA_Bliss.txt", "children_stories/african_storybook_en.txt"):
        (part / Path(name).name).write_bytes((shared / "corpus" / name).read_bytes())
    flags = [f"--data={part}", f"--cache={cache}", *NANO, "--vocab-size=1024"]
    updates, evaluations = run(flags, tmp_path / "run", "--mode=bcp", "--max-updates=20")
    assert len(updates) == 20 and evaluations[-1]["toy"] is None and evaluations[-1]["val_loss"] > 0
    corpus = data.open_prepared(data.prepare(str(part), cache, vocab_size=1024, quiet=True))
    assert corpus.line_label.any() and not corpus.line_label.all()
    goal = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]["goal"]
    assert updates[-1]["loss"] < updates[0]["loss"] and 3 < goal < 5


# --- The method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [
    ["--p=1"], ["--p=2"],
    ["--recipe=poster", "--p=1"], ["--recipe=poster", "--p=2"], ["--recipe=poster", "--p=1", "--pull=prox"],
])  # fmt: skip
def test_updates_equal_a_plain_reference(flags, tmp_path, method, double):
    """Both forms of the method written out again, one weight tensor at a time, without bcp.py."""
    more = ["--mode=bcp", "--goal=5.8", "--C=0.001", "--max-updates=25", "--lr-schedule=cosine", *method]
    poster = "--recipe=poster" in method
    updates, _ = run(flags, tmp_path / "run", *more)
    state = train.start(get_args([*flags, f"--out={tmp_path / 'again'}", *more]))
    torch.manual_seed(0)
    model = Transformer(state.model.config)
    stream, budget = state.stream, state.budget
    decay = [w for w in model.parameters() if w.dim() > 1]
    plain = [w for w in model.parameters() if w.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    for k in range(25):
        factor = (k + 1) / 3 if k < 3 else 0.5 * (1 + math.cos(math.pi * (k - 3) / (budget - 3)))
        for group in adamw.param_groups:
            group["lr"] = 0.01 * factor
        x, y = map(torch.from_numpy, stream.blocks())
        adamw.zero_grad()
        loss = model(x, y)
        assert loss.item() == pytest.approx(F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item(), abs=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        new = alpha + (0.1 * (loss.item() - 5.8) if poster else min(1.0, 0.1 * (loss.item() - 5.8)))
        for w in model.parameters():
            w.grad *= max(new, 0.0)
        adamw.step()
        C = 0.001 * factor if poster else 0.001
        with torch.no_grad():
            for w, a in zip(model.parameters(), anchor, strict=True):
                distance = w - a
                if "--pull=prox" in method or not poster:
                    soft = distance.sign() * (distance.abs() - C).clamp(min=0)
                    w.copy_(a + (soft if "--p=1" in method else distance / (1 + C)))
                else:
                    w -= C * (distance.sign() if "--p=1" in method else distance)
        assert updates[k]["batch"] == stream.batch and updates[k]["loss"] == pytest.approx(loss.item(), abs=1e-6)
        falls = falls + 1 if new <= alpha else 0
        alpha = max(new, 0.0)
        if falls >= (2 if poster else 3) and alpha < 1:
            stream.advance()
            if not poster:
                adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
            alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    assert updates[-1]["batch"] >= 1  # at least one batch had converged
    for name, w in weights(tmp_path / "run").items():
        torch.testing.assert_close(w, model.state_dict()[name], atol=1e-7, rtol=0)


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


def test_learning_rate_schedules():
    def shares(updates, budget, *more):
        return [train.share_of_rate(u, budget, get_args(["--warmup=10", *more])) for u in updates]

    assert shares((0, 4, 9, 10, 99), 100) == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert shares((10, 60), 110, "--lr-schedule=cosine") == pytest.approx([1.0, 0.5])
    assert shares((10, 80, 90, 99), 100, "--lr-schedule=wsd") == pytest.approx([1.0, 1.0, 0.5, 0.05])
    assert shares((10, 60, 110), 110, "--lr-schedule=cosine", "--lr-end=0.1") == pytest.approx([1.0, 0.55, 0.1])


def test_a_warm_up_below_one_is_a_share_of_the_budget(flags, tmp_path):
    state = train.start(get_args([*flags, f"--out={tmp_path / 'none'}", "--warmup=0.25"]))
    assert state.args.warmup == int(0.25 * state.budget) > 3


class Lower:
    """Leaves a batch as soon as its loss is below that of its first update; notes the losses of every visit."""

    def __init__(self):
        self.alpha, self.visits = 1.0, [[]]

    def update(self, loss: float) -> float:
        self.visits[-1].append(loss)
        self.alpha = 1.0 + 0.1 * len(self.visits[-1])
        return self.alpha

    def restart(self) -> None:
        self.alpha = 1.0
        self.visits.append([])

    @property
    def repeats(self) -> int:
        return len(self.visits[-1])

    @property
    def done(self) -> str | None:
        return "lower" if self.visits[-1][-1] < self.visits[-1][0] else None


def test_another_rule_in_alphas_place_decides_when_a_batch_is_left(flags, tmp_path):
    state = train.start(get_args([*flags, f"--out={tmp_path / 'run'}", "--mode=bcp", "--max-updates=12"]))
    state.folder, state.alpha = None, Lower()
    assert not train.train(state, journal.Journal(state, None), [])
    *left, _ = state.alpha.visits
    assert state.update == 12 and state.stream.position == len(left) >= 2 and list(tmp_path.iterdir()) == []
    for losses in left:
        assert losses[-1] < losses[0] and all(loss >= losses[0] for loss in losses[:-1])


# --- The record and the report ----------------------------------------------------------------------------------------


def test_norms_tell_how_far_step_pull_and_anchor_are(flags, tmp_path):
    updates, _ = run(flags, tmp_path / "run", "--mode=bcp", "--C=0.5", "--p=2", "--pull=gradient", "--max-updates=1",
                     "--warmup=0")  # fmt: skip
    u = updates[0]  # one step s from the anchor, pulled back by half of it
    assert u["pull_norm"] == pytest.approx(u["step_norm"] / 2, rel=1e-4)
    assert u["anchor_dist"] == pytest.approx(u["step_norm"] / 2, rel=1e-4) and u["step_norm"] > 0
    assert list(u["anchor_by_layer"]) == ["embed_tokens", "0", "norm"] and 0 <= u["unmoved"] < 1
    assert math.hypot(*u["anchor_by_layer"].values()) == pytest.approx(u["anchor_dist"], rel=1e-5)


def test_numbers_that_json_does_not_know_are_null_in_the_record(flags, tmp_path):
    state = train.start(get_args([*flags, f"--out={tmp_path / 'none'}"]))
    with contextlib.closing(journal.Journal(state, tmp_path)) as record:
        record.record(update=1, val_loss=math.nan, toy=math.inf, pairs={"a": 50.0, "b": math.nan})
        record.record(update=1, forgetting=[[0, 9, 5.5, math.nan], [1, 8, 5.5, 6.0]])
    first, second = journal.read(tmp_path)
    assert first == {"update": 1, "val_loss": None, "toy": None, "pairs": {"a": 50.0, "b": None}}
    assert second["forgetting"][0] == [0, 9, 5.5, None] and journal.forgetting([second]) == [[1, 8, 5.5, 6.0]]


def test_what_a_journal_remembers_does_not_grow_with_the_run(flags, tmp_path):
    state = train.start(get_args([*flags, f"--out={tmp_path / 'none'}"]))
    with contextlib.closing(journal.Journal(state, tmp_path)) as record:
        for update in range(500):
            record.record(update=update, batch=update % 19, loss=1.0)
        assert len(record.seen) == 19 and len(record.tracked) == journal.TRACKED
        assert record.tracked[18]["update"] == 493 and not hasattr(record, "records")


def test_a_goal_that_is_too_low_is_said_and_a_better_one_suggested(flags, tmp_path, capsys):
    run(flags, tmp_path / "run", "--mode=bcp", "--goal=0.1", "--max-repeats=4", "--max-updates=12")
    out = capsys.readouterr().out
    assert "unconverged         3 of 3" in out and "--goal=0.1 is too low" in out
    suggestion = float(out.split("try --goal=")[1].split()[0])
    updates, _ = run(flags, tmp_path / "better", "--mode=bcp", f"--goal={suggestion}", "--max-updates=12")
    assert 0.1 < suggestion < 6.5 and updates[-1]["batch"] >= 1


def test_run_folders_are_numbered_and_hold_what_later_programs_need(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train.main(get_args([*flags, "--mode=bcp", "--p=2", "--max-updates=2"])) == 0
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
    wanted = "update epoch batch repeat loss alpha lr step_norm pull_norm anchor_dist done tokens"
    assert set(wanted.split()) <= set(first)
