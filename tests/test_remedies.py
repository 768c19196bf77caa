"""Remedies and controls: each against a reference written out again, or by what it shows the model."""

import pytest
import torch
from conftest import n_batches, run, weights

import curriculum
import journal
import train
from flags import get_args

STREAM = ["--recipe=poster", "--goal=6.5", "--stream", "--replay=0.25", "--buffer-tokens=512"]


def reference(flags, out, more, updates: int, step) -> tuple[dict, list[float]]:
    """Weights and losses after some updates on the first batch; step(state, gradients, alpha, L) gives what AdamW gets:
    gradients, learning rate, and weight decay as a share of the weights."""
    state = train.start(get_args([*flags, f"--out={out}", *more]))
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
    assert [u["loss"] for u in updates] == pytest.approx(losses, abs=1e-6)
    for name, w in weights(tmp_path / "run").items():
        torch.testing.assert_close(w, expected[name].detach(), atol=1e-8, rtol=0)


def test_alpha_on_the_rate_scales_the_step_and_not_the_decay(flags, tmp_path, double):
    def step(state, gradients, alpha, L, n):
        alpha += 0.4 * (L - 5.0)
        return clipped(gradients), 0.003 * alpha, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-on=lr"], step)


def test_alpha_on_nothing_leaves_plain_adamw(flags, tmp_path, double):
    def step(state, gradients, alpha, L, n):
        return clipped(gradients), 0.003, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-on=none"], step)


def test_an_idle_visit_changes_nothing_and_others_are_as_without_it(flags, tmp_path):
    more = ["--mode=bcp", "--p=2", "--warmup=0", "--max-updates=12", "--recipe=within-reach"]
    updates, _ = run(flags, tmp_path / "all", *more, "--goal=99", "--idle")  # every first loss is at the goal
    assert {(u["repeat"], u["done"]) for u in updates} == {(1, "idle")} and len({u["batch"] for u in updates}) == 12
    fresh = train.start(get_args([*flags, *more, f"--out={tmp_path / 'fresh'}", "--goal=99"])).model
    for name, w in weights(tmp_path / "all").items():
        assert torch.equal(w, dict(fresh.named_parameters())[name]), name
    without, _ = run(flags, tmp_path / "without", *more, "--goal=0.1")
    updates, _ = run(flags, tmp_path / "none", *more, "--goal=0.1", "--idle")
    assert [u["loss"] for u in updates] == [u["loss"] for u in without] and "idle" not in {u["done"] for u in updates}


def test_a_leak_and_a_relative_goal_reach_alpha(flags, tmp_path, double):
    first = []

    def step(state, gradients, alpha, L, n):
        first.append(L)
        alpha += 0.4 * (L - 0.7 * first[0]) + 0.2 * (1 - alpha)
        return {name: alpha * g for name, g in clipped(gradients).items()}, 0.003, 0.003 * 0.1, alpha

    check_reference(flags, tmp_path, ["--alpha-leak=0.2", "--goal=0.1", "--goal-rel=0.7"], step)


def test_replayed_rows_add_their_share_of_the_gradient_and_alpha_looks_at_the_new_ones(flags, tmp_path, double):
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
    updates, _ = run(flags, tmp_path / "run", "--mode=lfr", "--epochs=3")
    focus = [u for u in updates if u["batch"] is None]
    assert len(updates) == 3 * N and {u["epoch"] for u in focus} == {2}
    assert len(focus) == round(curriculum.FOCUS * N)
    by_epoch = {e: [u["loss"] for u in updates if u["epoch"] == e] for e in (2, 3)}
    assert sum(by_epoch[2]) / len(by_epoch[2]) > sum(by_epoch[3]) / len(by_epoch[3])


def test_a_text_that_streams_by_is_met_once_and_then_the_buffer(flags, tmp_path, capsys):
    updates, _ = run(flags, tmp_path / "run", *STREAM, "--epochs=4")
    assert "in 1.00 passes" in capsys.readouterr().out
    batches = [u["batch"] for u in updates]
    N = batches.index(None)
    assert set(batches[N:]) == {None} and batches[:N] == sorted(batches[:N]) and len(updates) > N
    assert len({u["epoch"] for u in updates}) == 2


@pytest.mark.parametrize("more", [["--mode=lfr"], ["--mode=bcp", "--goal=5.5", "--replay=0.25"], STREAM])
def test_remedies_resume_exactly(flags, tmp_path, more):
    more = [*more, "--epochs=2", "--track-forgetting=5"]
    whole, _ = run(flags, tmp_path / "whole", *more)
    cut = len(whole) - 7
    run(flags, tmp_path / "cut", *more, f"--max-updates={cut}")
    again, _ = run([], tmp_path / "cut", "--resume", f"--max-updates={len(whole)}")
    assert [u["loss"] for u in again] == [u["loss"] for u in whole]
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(tmp_path / "cut")[name])
    tracked = [
        [record for record in journal.read(tmp_path / name) if "forgetting" in record] for name in ("whole", "cut")
    ]
    assert tracked[0] == tracked[1] and len(tracked[0]) == len(whole) // 5


def test_forgetting_is_the_loss_of_batches_met_before(flags, tmp_path, capsys):
    out = tmp_path / "run"
    updates, _ = run(flags, out, "--mode=curriculum", "--epochs=1", "--track-forgetting=6", "--max-updates=18")
    assert "forgetting" in capsys.readouterr().out
    last = [record for record in journal.read(out) if "forgetting" in record][-1]
    state = train.start(get_args([*flags, "--mode=curriculum", f"--out={tmp_path / 'again'}"]))
    state.model.load_state_dict(weights(out))
    assert last["update"] == 18 and len(last["forgetting"]) >= 5
    for batch, since, left, now in last["forgetting"]:
        assert updates[batch]["loss"] == left and updates[batch]["update"] == 18 - since
        state.stream.seek(0, batch)
        x, y = (torch.from_numpy(part) for part in state.stream.blocks())
        assert state.model(x, y).item() == pytest.approx(now, abs=1e-5)
