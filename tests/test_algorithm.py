"""bcp.py is the paper's Algorithm 1: against a transcription in float64 that shares no line with it, and by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bcp
import flags

ETA, RATE, UPDATES = 0.5, 0.05, 50


def problems() -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of 12 rows for a softmax regression of 6 features on 4 classes; the third has no pattern to learn."""
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(6, 4)), []
    for number in range(6):
        x = rng.normal(size=(12, 6))
        y = rng.integers(4, size=12) if number == 2 else np.argmax(x @ truth + 0.2 * rng.normal(size=(12, 4)), axis=1)
        made.append((x, y))
    return made


def transcription(p: int, C: float, goal: float, I_max: int) -> tuple[np.ndarray, list[tuple]]:
    """Algorithm 1, written out in numpy: the weights after some updates, and (batch, loss, alpha, streak) of each."""
    W = np.random.default_rng(1).normal(size=(6, 4))
    log: list[tuple] = []
    for batch, (x, y) in enumerate(problems()):
        W_before, alpha, no_inc, i = W.copy(), 1.0, 0, 0
        m, v, steps = np.zeros_like(W), np.zeros_like(W), 0
        while True:
            logits = x @ W
            q = np.exp(logits - logits.max(axis=1, keepdims=True))
            q /= q.sum(axis=1, keepdims=True)
            loss = -np.log(q[np.arange(12), y]).mean()
            i = i + 1
            increment = ETA * (loss - goal)
            increment = 1.0 if increment > 1.0 else increment
            alpha = alpha + increment if alpha + increment > 0 else 0.0
            no_inc = no_inc + 1 if increment <= 0 else 0
            g = alpha * (x.T @ (q - np.eye(4)[y])) / 12
            steps += 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            W = W - RATE * (m / (1 - 0.9**steps)) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8)
            if p == 2:
                W = (W + C * W_before) / (1 + C)
            else:
                far = W - W_before
                W = W_before + np.where(far > C, far - C, np.where(far < -C, far + C, 0.0))
            log.append((batch, loss, alpha, no_inc))
            if len(log) == UPDATES:
                return W, log
            if (alpha < 1 and no_inc >= 3) or i == I_max:
                break
    return W, log


def by_bcp(p: int, C: float, goal: float, I_max: int) -> tuple[np.ndarray, list[tuple], list[str]]:
    """The same with bcp.py and torch's AdamW; and why each batch was left."""
    W = [torch.nn.Parameter(torch.from_numpy(np.random.default_rng(1).normal(size=(6, 4))))]
    optimizer = torch.optim.AdamW(W, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    anchor, log, exits = [torch.zeros_like(W[0])], [], []
    alpha = bcp.Alpha(eta=ETA, goal=goal, max_repeats=I_max)
    for batch, (x, y) in enumerate((torch.from_numpy(x), torch.from_numpy(y)) for x, y in problems()):
        bcp.drop_anchor(anchor, W)
        bcp.start_moments(optimizer)
        while not alpha.done and len(log) < UPDATES:
            loss = F.cross_entropy(x @ W[0], y)
            optimizer.zero_grad()
            loss.backward()
            alpha.update(loss.item())
            bcp.clip_and_scale([W[0].grad], math.inf, alpha.alpha)
            optimizer.step()
            bcp.pull_back(W, anchor, C, p)
            log.append((batch, loss.item(), alpha.alpha, alpha.streak))
        exits.append(alpha.done)
        alpha.restart()
    return W[0].detach().numpy(), log, exits


@pytest.mark.parametrize(("p", "C"), [(1, 0.01), (2, 0.1), (1, 1e-6), (2, 1.0)])
def test_it_is_algorithm_1_to_the_ninth_digit(p, C):
    W, log = transcription(p, C, goal=1.2, I_max=10)
    again, log_again, exits = by_bcp(p, C, goal=1.2, I_max=10)
    assert [entry[0] for entry in log] == [entry[0] for entry in log_again] and len(log) >= 30
    np.testing.assert_allclose(np.array(log), np.array(log_again), rtol=0, atol=1e-9)
    np.testing.assert_allclose(W, again, rtol=0, atol=1e-9)
    if p == 1:
        assert {"converged", "unconverged"} <= set(exits)  # both ways out were taken


def test_the_increment_is_capped_and_the_decrement_is_not():
    alpha = bcp.Alpha(eta=0.5, goal=1.0)
    assert alpha.update(5.0) == 2.0  # 1 + min(1, 0.5 x 4)
    assert alpha.update(2.0) == 2.5
    assert alpha.update(-7.0) == -1.5 and alpha.alpha == 0.0  # 2.5 - 0.5 x 8, then the projection
    assert bcp.Alpha(eta=0.5, goal=1.0, cap=1e9).update(5.0) == 3.0  # the poster's


def test_three_updates_in_a_row_without_an_increase_and_alpha_below_one():
    alpha, done = bcp.Alpha(eta=0.1, goal=2.0), []
    for loss in (3.0, 1.5, 1.5, 2.5, 1.5, 2.0, 1.0, 1.5):  # alpha 1.1, 1.05, 1, 1.05, 1, 1, 0.9
        alpha.update(loss)
        done.append((alpha.streak, alpha.done))
        if alpha.done:
            break
    # A loss at the goal is no increase; the streak of the second and third did not last.
    assert done == [(0, None), (1, None), (2, None), (0, None), (1, None), (2, None), (3, "converged")]
    alpha.restart()
    for _ in range(10):
        assert alpha.done is None
        alpha.update(2.5)
    assert alpha.done == "unconverged" and alpha.alpha == pytest.approx(1.5)


def test_fresh_moments_make_the_next_step_a_first_one():
    """AdamW's first step is the rate in every weight, whatever the gradient; with carried moments it is not."""
    w = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.AdamW(w, lr=0.1, weight_decay=0.0, fused=True)
    steps = []
    for gradient, fresh in (([1.0, -2.0, 5.0], True), ([0.01, 0.02, -0.03], False), ([0.01, 0.02, -0.03], True)):
        if fresh:
            bcp.start_moments(optimizer)
        before = w[0].detach().clone()
        w[0].grad = torch.tensor(gradient)
        optimizer.step()
        steps.append((w[0].detach() - before).tolist())
    assert steps[0] == pytest.approx([-0.1, 0.1, -0.1], abs=1e-6)
    assert steps[2] == pytest.approx([-0.1, -0.1, 0.1], abs=1e-6)
    m, v = 0.9 * 0.1 + 0.1 * 0.01, 0.999 * 0.001 + 0.001 * 0.01**2
    assert steps[1][0] == pytest.approx(-0.1 * (m / 0.19) / math.sqrt(v / (1 - 0.999**2)), abs=1e-6)


def test_the_paper_s_settings_are_those_of_tables_7_and_8():
    """Each is set by one flag, and each can be overridden."""
    bcp_1, bcp_2 = (flags.get_args(["--recipe=paper", f"--p={p}"]) for p in (1, 2))
    assert (bcp_1.C, bcp_2.C, bcp_1.goal, bcp_1.eta, bcp_1.max_repeats) == (1e-6, 1.0, 0.693, 0.1, 10)
    assert (bcp_1.beta1, bcp_1.beta2, bcp_1.weight_decay, bcp_1.patience, bcp_1.alpha_cap) == (0.9, 0.999, 0, 3, 1)
    assert (bcp_1.lr, bcp_1.lr_end, bcp_1.lr_schedule, bcp_1.warmup) == (5e-4, 0.1, "cosine", 0.05)
    assert flags.get_args(["--recipe=paper", "--mode=random"]).weight_decay == 0.01
    assert flags.get_args(["--recipe=paper", "--goal=3", "--lr=1e-3"]).goal == 3
    for preset in ("115m", "372m"):
        args = flags.get_args(["--recipe=paper", f"--preset={preset}"])
        flags.fill_in(args)
        assert (args.batch_size, args.block_size, args.moments) == (128, 512, "fresh")


def test_weights_are_kept_at_the_words_that_the_paper_averaged():
    args = flags.get_args(["--keep-weights=words", "--batch-size=128", "--block-size=512"])
    kept = sorted(flags.updates_to_keep(args, 10**6, 10**6, words_per_token=0.8))
    words = 128 * 512 * 0.8
    assert len(kept) == 28 and kept[0] == math.ceil(1e6 / words) and kept[-1] == math.ceil(1e9 / words)
    assert sum(update * words <= 1.01e8 for update in kept) == 19  # in the first tenth of a billion
    args = flags.get_args(["--keep-weights=shares"])
    kept = sorted(flags.updates_to_keep(args, 100_000, 100_000, words_per_token=0.8))
    assert kept[8:11] == [900, 1000, 2000] and kept[-1] == 100_000 and len(kept) == 28
