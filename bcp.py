"""Batch-wise convergent pre-training (BCP): the whole method, on any list of tensors, without a model in sight.

Source: Yoshida et al., "Batch-wise Convergent Pre-training: Step-by-Step Learning Inspired by Child Language
Development", First BabyLM Workshop 2025, pages 508-524, Algorithm 1. For every batch X_t the weights W are moved as
little as possible, C/p |W - W_{t-1}|_p^p, until their loss is down to the goal; alpha is the multiplier of that
constraint:

    anchor <- W;  alpha <- 1;  streak <- 0;  the optimizer's moments start at zero     drop_anchor, Alpha.restart,
    repeat                                                                             start_moments
        L      <- mean cross-entropy of W on X_t                                       (the caller's business)
        delta  <- min(1, eta (L - goal));  alpha <- max(0, alpha + delta)              Alpha.update
        streak <- streak + 1 if delta <= 0 else 0
        W'     <- AdamW's step on alpha L                                              clip_and_scale
        W      <- the proximal step of C/p |W - anchor|_p^p from W'                    pull_back
    until alpha < 1 and streak >= 3, or after I_max repeats                            Alpha.done
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Alpha:
    """The learning strength of one batch: it grows while the loss is above the goal, and falls below it."""

    eta: float  # learning rate of alpha, per nat
    goal: float  # epsilon, nats per token
    cap: float = 1.0  # the largest increment in one update; the poster has none
    threshold: float = 1.0
    patience: int = 3  # updates in a row without an increase
    max_repeats: int = 10  # I_max
    leak: float = 0.0  # share by which alpha goes back toward 1 at every update (a remedy, not the paper's)
    goal_rel: float = 0.0  # the goal of a batch is at least this share of its own first loss (a remedy)
    idle: bool = False  # a visit whose first loss is at the goal changes nothing (a control)
    first: float = 0.0  # that loss
    alpha: float = 1.0
    streak: int = 0
    repeats: int = 0

    def update(self, loss: float) -> float:
        """alpha <- max(0, alpha + min(cap, eta (L - goal))). `loss` L in nats per token.

        With a leak x, + x (1 - alpha): what the sum of all past excess would wind up to is forgotten by and by. With
        `goal_rel`, the goal is within reach also of a batch that begins far above it.

        Returns alpha before the clamp, where the streak looks. `self.alpha` multiplies the gradient, and goes on.
        """
        if self.repeats == 0:
            self.first = loss
        goal = max(self.goal, self.goal_rel * self.first)
        delta = min(self.cap, self.eta * (loss - goal))  # the increment is capped, not the decrement
        raw = self.alpha + delta + self.leak * (1 - self.alpha)
        self.streak = self.streak + 1 if raw <= self.alpha else 0
        self.alpha = max(0.0, raw)
        self.repeats += 1
        return raw

    def restart(self) -> None:
        """A new batch: alpha starts at 1 again."""
        self.alpha, self.streak, self.repeats = 1.0, 0, 0

    @property
    def done(self) -> str | None:
        """Is it time for the next batch, and why? Looks at alpha, never at the loss, but for `idle`."""
        if self.idle and self.repeats == 1 and self.first <= self.goal:
            return "idle"
        if self.alpha < self.threshold and self.streak >= self.patience:
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
    """A new batch: the anchor is W, copied in place. An empty list is no anchor: nothing happens."""
    if anchor:
        torch._foreach_copy_(anchor, W)


@torch.no_grad()
def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """A new batch: the optimizer's moments, and its count of steps, are zero again (section 3.4)."""
    if optimizer.state:
        torch._foreach_zero_([tensor for state in optimizer.state.values() for tensor in state.values()])


@torch.no_grad()
def clip_and_scale(gradients: list[Tensor], max_norm: float, alpha: float) -> Tensor:
    """From the gradient of L to that of alpha L, in place: clip to `max_norm`, then multiply by alpha.

    In this order, because clipping last would undo alpha. Returns the norm of the gradient of L, before both.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0) * alpha)
    return norm


@torch.no_grad()
def pull_back(W: list[Tensor], anchor: list[Tensor], C: float, p: int, prox: bool = True) -> None:
    """From W' in W to argmin over w of (C/p) |w - anchor|_p^p + |w - W'|_2^2 / 2, in place (equations 8 to 10).

    p = 2: (W' + C anchor) / (1 + C).
    p = 1: a soft threshold: every weight moves C toward its anchor, and within C of it lands exactly on it.
    Without prox, as the poster has it, a gradient step instead: W' - C sign(W' - anchor), which may overshoot by less
    than C, or W' - C (W' - anchor). Without an anchor, an empty list, nothing happens.
    """
    if not anchor:
        return
    if p == 2:
        torch._foreach_lerp_(W, anchor, C / (1 + C) if prox else C)  # in one pass over the weights
        return
    D = torch._foreach_sub(W, anchor)
    if prox:
        near = torch._foreach_clamp_max(torch._foreach_clamp_min(D, -C), C)
        torch._foreach_copy_(W, torch._foreach_add(anchor, torch._foreach_sub(D, near)))
    else:
        torch._foreach_sign_(D)
        torch._foreach_sub_(W, D, alpha=C)
