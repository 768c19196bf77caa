"""Samples at the ends of what the flags allow."""

import pytest
import torch

import sample
from model import Config, Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(Config(n_layer=1, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=60))


@pytest.mark.parametrize("temperature", [1e-40, 1e-320])
def test_the_coldest_samples_are_those_of_temperature_0(model, temperature):
    cold, zero = (sample.generate(model, [59], 6, t, 50, eot=59, seed=0) for t in (temperature, 0))
    assert cold == zero


def test_weights_that_are_not_finite_are_said(model):
    model.model.norm.weight.detach().fill_(torch.nan)
    with pytest.raises(ValueError, match="no finite numbers"):
        sample.generate(model, [59], 6, 0.8, 50, eot=59, seed=0)
