"""Batch-wise convergent pre-training (BCP): the whole method, on any list of tensors, without a model in sight.

Source: Yoshida et al., "Batch-wise Convergent Pre-training: Step-by-Step Learning Inspired by Child Language
Development", First BabyLM Workshop 2025, pages 508-524. Where the poster is silent this file follows the readings
listed in the README. For every batch X_t, from W_{t,0} on:

    step 1   L      = cross-entropy of W on X_t                                  (the caller's business)
    step 2   alpha' = alpha + eta (L - L_goal);   W' = AdamW(alpha' L)           Alpha.update, clip_and_scale
    step 3   W      = W' - grad of (C/p) |W' - W_{t,0}|_p^p                      pull_back
    step 4   next batch once alpha has fallen `patience` times in a row          Alpha.converged
             and is below `threshold`; else the same batch again
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Alpha:
    """The adaptive learning strength of one batch: it grows while the loss is above the goal, and falls below it."""

    eta: float  # learning rate of alpha, per nat
    goal: float  # L_goal, nats per token
    threshold: float = 1.0
    patience: int = 2  # falls in a row that count as "decreasing continuously"
    max_repeats: int = 100  # safety stop
    leak: float = 0.0  # share by which alpha goes back toward 1 at every update (a remedy; the poster has none)
    goal_rel: float = 0.0  # the goal of a batch is at least this share of its own first loss (a remedy)
    first: float = 0.0  # that loss
    alpha: float = 1.0
    falls: int = 0
    repeats: int = 0

    def update(self, loss: float) -> float:
        """Step 2: alpha' = f(L, alpha) = alpha + eta (L - L_goal). `loss` L in nats per token.

        With a leak x, + x (1 - alpha): what the sum of all past excess would wind up to is forgotten by and by. With
        `goal_rel`, L_goal is within reach also of a batch that begins far above it.

        Returns alpha' as the formula gives it. A fall is judged on that value; what multiplies the gradient, and what
        the next repeat starts from, is `self.alpha` = max(alpha', 0), for a negative strength would climb the loss.
        """
        if self.repeats == 0 or not math.isfinite(self.first):
            self.first = loss
        goal = max(self.goal, self.goal_rel * self.first)
        raw = self.alpha + self.eta * (loss - goal) + self.leak * (1 - self.alpha)
        self.falls = self.falls + 1 if raw < self.alpha else 0
        self.alpha = max(raw, 0.0)
        self.repeats += 1
        return raw

    def restart(self) -> None:
        """A new batch: alpha starts at 1 again."""
        self.alpha, self.falls, self.repeats = 1.0, 0, 0

    @property
    def done(self) -> str | None:
        """Step 4: is it time for the next batch, and why? Looks at alpha, never at the loss."""
        if self.falls >= self.patience and self.alpha < self.threshold:
            return "converged"
        return "unconverged" if self.repeats >= self.max_repeats else None


@dataclass
class Times:
    """What the other regimes have in alpha's place: every batch is done after the same number of updates."""

    times: int
    alpha: float = 1.0
    repeats: int = 0

    def update(self, loss: float) -> None:
        self.repeats += 1

    def restart(self) -> None:
        self.repeats = 0

    @property
    def done(self) -> str | None:
        return "repeated" if self.repeats >= self.times else None


@torch.no_grad()
def drop_anchor(anchor: list[Tensor], W: list[Tensor]) -> None:
    """A new batch: W_{t,0} = W_{t-1,n}, copied in place. An empty list is no anchor: nothing happens."""
    if anchor:
        torch._foreach_copy_(anchor, W)


@torch.no_grad()
def pull_back(W: list[Tensor], anchor: list[Tensor], C: float, p: int, prox: bool = False) -> None:
    """Step 3: W = W' - grad of (C/p) |W' - W_{t,0}|_p^p, in place. `anchor` is W_{t,0}, shapes as in W.

    p = 1: every weight moves C toward its anchor (sign(0) = 0), and may overshoot it by less than C.
    p = 2: every weight moves the share C of its distance.
    prox: instead of the gradient step the proximal one, argmin over w of (C/p) |w - anchor|_p^p + |w - W'|_2^2 / 2
          (Parikh & Boyd 2014, "Proximal Algorithms"). For p = 1, the soft threshold: a weight within C of its anchor
          lands exactly on it.
    Without an anchor, an empty list, nothing happens.
    """
    if not anchor:
        return
    if p == 2:
        torch._foreach_lerp_(W, anchor, C / (1 + C) if prox else C)  # W' - C D, in one pass over the weights
        return
    D = torch._foreach_sub(W, anchor)  # W' - W_{t,0}
    if prox:
        near = torch._foreach_clamp_max(torch._foreach_clamp_min(D, -C), C)
        torch._foreach_copy_(W, torch._foreach_add(anchor, torch._foreach_sub(D, near)))
    else:
        torch._foreach_sign_(D)
        torch._foreach_sub_(W, D, alpha=C)


@torch.no_grad()
def clip_and_scale(gradients: list[Tensor], max_norm: float, alpha: float) -> Tensor:
    """From the gradient of L to that of alpha' L, in place: clip to `max_norm`, then multiply by alpha'.

    In this order, because clipping last would undo alpha. Returns the norm of the gradient of L, before both.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0) * alpha)
    return norm
