"""Alpha, the pull-back and the convergence check against numbers worked out by hand: the poster's form, two falls in a
row and no cap, where nothing else is said. (Algorithm 1 as a whole: test_algorithm.py.)"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bcp import Alpha, Times, clip_and_scale, drop_anchor, pull_back
from journal import distance
from machine import copy_to_host
from model import Config, Transformer

POSTER = {"eta": 0.5, "goal": 2.0, "cap": 1e9, "patience": 2, "max_repeats": 100}


def run(losses, **settings):
    """alpha' of every update and the state afterwards; stops when the batch is done."""
    alpha, raw = Alpha(**(POSTER | settings)), []
    for loss in losses:
        raw.append(alpha.update(loss))
        if alpha.done:
            break
    return raw, alpha


def test_alpha_follows_the_formula():
    # 1 + 0.5 (4 - 2) = 2;  2 + 0.5 (3 - 2) = 2.5;  2.5 + 0.5 (1 - 2) = 2;  2 + 0.5 (0.5 - 2) = 1.25
    raw, alpha = run([4.0, 3.0, 1.0, 0.5])
    assert raw == [2.0, 2.5, 2.0, 1.25]
    assert (alpha.alpha, alpha.streak, alpha.repeats, alpha.done) == (1.25, 2, 4, None)


def test_batch_converges_after_patience_falls_in_a_row_below_the_threshold():
    # 1.5, 1.0 (a fall, but not below 1), 0.5 (second fall, below 1)
    raw, alpha = run([3.0, 1.0, 1.0, 1.0])
    assert raw == [1.5, 1.0, 0.5] and alpha.done == "converged"
    raw, alpha = run([3.0, 1.0, 1.0, 1.0, 1.0], patience=4)
    assert raw == [1.5, 1.0, 0.5, 0.0, -0.5] and alpha.done == "converged"


def test_one_fall_below_the_threshold_is_not_convergence():
    raw, alpha = run([1.0])
    assert raw == [0.5] and alpha.done is None


def test_a_rise_starts_the_count_again():
    raw, alpha = run([1.0, 3.0, 1.0])  # 0.5 (fall), 1.0 (rise), 0.5 (fall)
    assert raw == [0.5, 1.0, 0.5] and alpha.streak == 1 and alpha.done is None


def test_an_unchanged_alpha_has_not_increased():
    _, alpha = run([1.0, 2.0])
    assert alpha.streak == 2 and alpha.done == "converged"


def test_the_threshold_looks_at_alpha_and_not_at_the_loss():
    raw, alpha = run([9.0, 1.0, 1.0, 1.0])  # 4.5, 4.0, 3.5, 3.0: the loss is below the goal, alpha is not down yet
    assert raw == [4.5, 4.0, 3.5, 3.0] and alpha.done is None
    _, alpha = run([9.0, 1.0, 1.0], threshold=4.0)
    assert alpha.done == "converged" and alpha.repeats == 3


SETTINGS = {
    "eta": st.floats(1e-4, 10),
    "goal": st.floats(0.1, 12),
    "threshold": st.floats(0.01, 5),
    "patience": st.integers(1, 6),
    "max_repeats": st.integers(1, 30),
}


@given(st.fixed_dictionaries(SETTINGS), st.lists(st.floats(0, 15), min_size=1, max_size=40))
def test_any_losses_and_settings_give_the_alpha_of_the_description(settings, losses):
    """Every repeat by the formula, clamp and streak. Done at the first repeat that converges, or at max_repeats. While
    no clamp was reached, alpha is 1 + eta times the summed excess."""
    alphas, raws, done = [1.0], [], None
    for n, loss in enumerate(losses, 1):
        raws.append(alphas[-1] + settings["eta"] * (loss - settings["goal"]))
        fell = [raw <= before for raw, before in zip(raws, alphas, strict=True)]
        alphas.append(max(raws[-1], 0.0))
        converged = n >= settings["patience"] and all(fell[-settings["patience"] :])
        converged = converged and alphas[-1] < settings["threshold"]
        if converged or n == settings["max_repeats"]:
            done = n
            break
    raw, alpha = run(losses, **settings)
    assert raw == raws and alpha.alpha == alphas[-1] >= 0
    assert alpha.repeats == len(raws)
    assert alpha.done == (None if done is None else "converged" if converged else "unconverged")
    if min(raws) >= 0:
        excess = sum(loss - settings["goal"] for loss in losses[: len(raws)])
        assert alpha.alpha == pytest.approx(1 + settings["eta"] * excess, abs=1e-6)
    alpha.restart()
    assert run(losses, **settings)[0] == [alpha.update(loss) for loss in losses[: len(raws)]]


def test_alpha_is_clamped_at_zero_and_a_clamped_alpha_still_falls():
    alpha = Alpha(**POSTER | {"eta": 1.0, "patience": 3})
    raws = [alpha.update(0.5) for _ in range(3)]  # 1 - 1.5 = -0.5, clamped; then 0 - 1.5, clamped again
    assert raws == [-0.5, -1.5, -1.5]
    assert alpha.alpha == 0.0 and alpha.streak == 3 and alpha.done == "converged"


def test_safety_stop_counts_as_done_but_not_as_converged():
    raw, alpha = run([5.0] * 10, max_repeats=4)
    assert len(raw) == 4 and alpha.done == "unconverged"


def test_without_alpha_a_batch_is_done_after_so_many_updates_whatever_its_loss():
    times, done = Times(3), []
    for loss in (9.0, 0.1, 5.0, 1.0, 1.0, 1.0):
        assert times.update(loss) is None and times.alpha == 1.0
        done.append((times.repeats, times.done))
        if times.done:
            times.restart()
    assert done == 2 * [(1, None), (2, None), (3, "repeated")]


def test_alpha_is_one_plus_eta_times_the_summed_excess():
    losses = [7.0, 6.5, 6.1, 5.0, 4.8]
    raw, _ = run(losses, eta=0.1, goal=4.0)
    for n, value in enumerate(raw, 1):
        assert value == pytest.approx(1 + 0.1 * sum(loss - 4.0 for loss in losses[:n]))


def tensors(*values):
    return [torch.tensor(v) for v in values]


def test_pull_p1_moves_every_weight_by_C_and_leaves_those_on_the_anchor():
    W, anchor = tensors([1.0, -1.0, 0.5], [[0.05]]), tensors([0.0, 0.0, 0.5], [[0.0]])
    pull_back(W, anchor, C=0.1, p=1, prox=False)
    torch.testing.assert_close(
        W, tensors([0.9, -0.9, 0.5], [[-0.05]])
    )  # the last one overshoots: the plain subgradient
    torch.testing.assert_close(anchor, tensors([0.0, 0.0, 0.5], [[0.0]]))


def test_pull_p2_moves_every_weight_by_a_share_of_its_distance():
    W, anchor = tensors([1.0, -3.0, 0.5]), tensors([0.0, 1.0, 0.5])
    pull_back(W, anchor, C=0.1, p=2, prox=False)
    torch.testing.assert_close(W, tensors([0.9, -2.6, 0.5]))


def test_prox_p1_never_overshoots_and_lands_exactly_on_the_anchor():
    anchor = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    W = anchor + torch.linspace(-0.2, 0.2, 10_000)
    before = W.clone()
    pull_back([W], [anchor], C=0.1, p=1, prox=True)
    near = (before - anchor).abs() <= 0.1
    assert near.sum() > 4000 and torch.equal(W[near], anchor[near])
    expected = before[~near] - 0.1 * (before - anchor)[~near].sign()
    torch.testing.assert_close(W[~near], expected)


def test_prox_p2_divides_the_distance_by_one_plus_C():
    W, anchor = tensors([1.5, -3.0]), tensors([0.0, 0.0])
    pull_back(W, anchor, C=0.5, p=2, prox=True)
    torch.testing.assert_close(W, tensors([1.0, -2.0]))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("prox", [False, True])
def test_C_zero_pulls_nothing(p, prox):
    W, anchor = torch.randn(50), torch.randn(50)
    before = W.clone()
    pull_back([W], [anchor], C=0.0, p=p, prox=prox)
    torch.testing.assert_close(W, before, atol=1e-6, rtol=0)


def test_gradient_is_clipped_before_alpha_multiplies_it():
    gradients = tensors([3.0, 0.0], [[4.0]])  # norm 5
    clip_and_scale(gradients, max_norm=1.0, alpha=10.0)
    torch.testing.assert_close(gradients, tensors([6.0, 0.0], [[8.0]]))  # norm 10 = alpha, not 1
    small = tensors([0.3, 0.4])
    clip_and_scale(small, max_norm=1.0, alpha=2.0)
    torch.testing.assert_close(small, tensors([0.6, 0.8]))


def test_distance_is_the_norm_over_all_tensors():
    assert distance(tensors([3.0, 0.0], [[-4.0]])) == pytest.approx(5.0)


def test_a_scalar_reaches_the_host_in_full_precision():
    x = torch.tensor(1.2345678)
    assert copy_to_host(x)() == x.item()


def adamw_steps(alphas: list[float], beta2: float = 0.95) -> list[float]:
    """How far AdamW moves 2,000 weights at each update when alpha multiplies random gradients."""
    random = torch.Generator().manual_seed(0)
    w = torch.zeros(2000, requires_grad=True)
    optimizer, steps = torch.optim.AdamW([w], lr=1.0, betas=(0.9, beta2), eps=1e-8, weight_decay=0.0), []
    for alpha in alphas:
        w.grad, before = alpha * torch.randn(2000, generator=random), w.detach().clone()
        optimizer.step()
        steps.append((w.detach() - before).norm().item())
    return steps


def test_fact_2_adamw_does_not_feel_a_constant_alpha():
    plain = adamw_steps([1.0] * 100)
    for alpha in (0.1, 10.0, 100.0):
        assert adamw_steps([alpha] * 100) == pytest.approx(plain, rel=1e-5)


def test_fact_3_alphas_fall_leaves_a_shadow_on_the_next_batch():
    climb = [1 + 9 * k / 40 for k in range(40)]
    alphas = (
        [1.0] * 60 + climb + climb[::-1] + [1.0] * 60
    )  # up to 10 and down to 1 over 80 repeats, then the next batch
    share = [step / plain for step, plain in zip(adamw_steps(alphas), adamw_steps([1.0] * 200), strict=True)]
    assert max(share[60:100]) > 1.3  # only alpha's change acts: while it climbs, steps are longer
    # The next batch's first steps are too short; fifty updates later they still are.
    assert max(share[140:160]) < 0.5 and share[165] < 0.6 and share[190] < 0.9


def test_a_leak_lets_alpha_forget_its_excess():
    alpha = Alpha(eta=0.5, goal=2.0, leak=0.25)
    assert alpha.update(4.0) == 2.0  # 1 + 0.5 * 2 + 0.25 * 0
    assert alpha.update(2.0) == 1.75  # 2 + 0 + 0.25 * (1 - 2)
    for _ in range(100):
        alpha.update(3.0)
    assert alpha.alpha == pytest.approx(1 + 0.5 * 1 / 0.25)  # where eta (L - goal) and the leak balance: no windup


def test_a_goal_is_at_least_a_share_of_the_first_loss_of_its_batch():
    alpha = Alpha(eta=1.0, goal=1.5, cap=9.0, goal_rel=0.5)
    assert alpha.update(4.0) == 3.0  # goal 2, half of 4
    assert alpha.update(1.0) == 2.0  # still 2
    alpha.restart()
    assert alpha.update(2.0) == 1.5  # half of 2 is below 1.5


@pytest.mark.parametrize(("p", "prox"), [(1, False), (1, True), (2, False), (2, True)])
def test_fifty_updates_equal_the_method_written_out(p, prox):
    """Every parameter after each of fifty updates, in float64, so that sign() sees the same signs on both sides.

    The reference knows neither bcp.py nor torch.optim: AdamW, clipping, alpha and pull are formulas, weight by weight.
    """
    torch.manual_seed(0)
    config = Config(n_layer=2, n_embd=16, n_head=4, n_kv_head=2, n_mlp=24, vocab_size=50)
    fast = Transformer(config).double()
    plain = Transformer(config).double()
    plain.load_state_dict(fast.state_dict())
    batches = torch.randint(0, 50, (9, 2, 4, 8))  # X_t: inputs and targets, (B, T) each
    lr, C, eta, goal, decay, clip = 0.01, 0.002 if p == 1 else 0.1, 0.5, 3.9, 0.1, 1.0

    W, alpha, t = list(fast.parameters()), Alpha(**POSTER | {"eta": eta, "goal": goal}), 0
    anchor = [w.detach().clone() for w in W]
    optimizer = torch.optim.AdamW(W, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, fused=True)

    V, a, falls, s = list(plain.parameters()), 1.0, 0, 0
    start = [v.detach().clone() for v in V]
    m, v2 = [torch.zeros_like(v) for v in V], [torch.zeros_like(v) for v in V]

    clipped = 0
    for k in range(1, 51):
        L = fast(*batches[t % 9])
        L.backward()
        alpha.update(L.item())
        clip_and_scale([w.grad for w in W], clip, alpha.alpha)
        optimizer.step()
        optimizer.zero_grad()
        pull_back(W, anchor, C, p, prox)
        if alpha.done:
            t += 1
            alpha.restart()
            drop_anchor(anchor, W)

        L = plain(*batches[s % 9])
        gradients = torch.autograd.grad(L, V)
        raw = a + eta * (L.item() - goal)
        falls = falls + 1 if raw < a else 0
        a = max(raw, 0.0)
        norm = sum(g.square().sum() for g in gradients).sqrt()
        clipped += bool(norm > clip)
        with torch.no_grad():
            for i, (w, g, w0) in enumerate(zip(V, gradients, start, strict=True)):
                g = g * min(1.0, clip / (norm + 1e-6)) * a
                m[i] = 0.9 * m[i] + 0.1 * g
                v2[i] = 0.95 * v2[i] + 0.05 * g * g
                w *= 1 - lr * decay
                w -= lr * (m[i] / (1 - 0.9**k)) / ((v2[i] / (1 - 0.95**k)).sqrt() + 1e-8)
                d = w - w0
                if p == 1:
                    w -= d.clamp(-C, C) if prox else C * d.sign()
                else:
                    w -= (C / (1 + C) if prox else C) * d
            if falls >= 2 and a < 1:
                s, a, falls, start = s + 1, 1.0, 0, [w.clone() for w in V]

        assert t == s
        for name, w in fast.named_parameters():
            torch.testing.assert_close(w, plain.get_parameter(name), rtol=1e-4, atol=1e-8)
    assert t >= 2 and 0 < clipped < 50, clipped  # batches converged, gradients were clipped, both at times
