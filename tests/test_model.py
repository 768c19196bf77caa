"""The model is Qwen2.5: same numbers as transformers, same names, same count."""

import random
from dataclasses import replace

import pytest
import torch

from machine import pick_device
from model import PRESETS, Config, Transformer, count_parameters


def random_config(seed: int) -> Config:
    r = random.Random(seed)
    n_kv_head, shared, head_size = r.choice((1, 2, 3)), r.choice((1, 2, 4)), r.choice((4, 8, 16))
    return Config(
        n_layer=r.randint(1, 4),
        n_embd=n_kv_head * shared * head_size,
        n_head=n_kv_head * shared,
        n_kv_head=n_kv_head,
        n_mlp=r.randint(5, 80),
        vocab_size=r.randint(20, 300),
        rope_theta=r.choice((1e4, 1e6)),
    )


def reference(config: Config):
    transformers = pytest.importorskip("transformers", reason="transformers (requirements-dev.txt) is the reference")
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.n_mlp,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=512,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
        )
    ).eval()


@pytest.mark.parametrize("seed", range(6))
def test_logits_equal_those_of_transformers(seed):
    torch.manual_seed(seed)
    config = random_config(seed)
    model, hf = Transformer(config), reference(config)
    with torch.no_grad():
        for w in model.parameters():  # biases and norms too, and large enough that an error would show
            w.add_(0.2 * torch.randn_like(w))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in hf.named_parameters()]
    weights = model.state_dict()
    hf.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    tokens = torch.randint(0, config.vocab_size, (3, random.Random(seed).randint(2, 90)))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf(tokens).logits, atol=1e-4, rtol=0)


def test_loss_is_the_mean_cross_entropy_of_the_counted_targets():
    torch.manual_seed(0)
    model = Transformer(random_config(1))
    tokens, targets = torch.randint(0, 20, (2, 2, 7))
    targets[0, :3] = -100
    log_p = model(tokens).log_softmax(-1)
    by_hand = [-log_p[b, t, targets[b, t]].item() for b in range(2) for t in range(7) if targets[b, t] >= 0]
    assert model(tokens, targets).item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    each = model(tokens, targets, reduction="none")
    assert each.shape == (2, 7) and each.sum().item() == pytest.approx(sum(by_hand), abs=1e-4)


def test_presets_have_the_promised_sizes():
    counts = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            counts[name] = count_parameters(Transformer(config))
    assert counts["117m"] == 117_014_784
    assert counts["small"] == pytest.approx(10e6, rel=0.1)
    assert counts["tiny"] == pytest.approx(1e6, rel=0.1)


def test_initial_weights_are_normal_with_deviation_002_and_zero_biases():
    torch.manual_seed(0)
    weights = Transformer(PRESETS["tiny"]).state_dict()
    assert weights["model.layers.0.mlp.gate_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not weights["model.layers.3.self_attn.q_proj.bias"].any()


def test_no_position_looks_ahead():
    torch.manual_seed(0)
    model = Transformer(random_config(2))
    tokens = torch.randint(0, 20, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 20
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0, :8], model(changed)[0, :8], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sizes", "flag"), [({"n_head": 5}, "--n-embd"), ({"n_kv_head": 3}, "--n-kv-head")])
def test_sizes_that_do_not_fit_name_the_flag(sizes, flag):
    with pytest.raises(ValueError, match=flag):
        replace(PRESETS["tiny"], **sizes)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--device=cuda:99.*cpu"):
        pick_device("cuda:99")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(("preset", "count"), [("115m", 114_964_224), ("372m", 372_234_112)])
def test_the_paper_s_models_have_the_number_of_weights_that_it_reports(preset, count):
    with torch.device("meta"):
        assert count_parameters(Transformer(PRESETS[preset])) == count
