"""What only a GPU can show; skipped without one. `bash experiments/gpu.sh tests` runs these. No rustbpe, no network."""

import math
import os

import pytest
import torch
from conftest import run, weights

import checkpoint
import data
import train
from flags import get_args
from model import PRESETS, Transformer

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products that give the same bits every time
DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    """Torch compiles a function only so many times, whatever test it is in, and then goes on without."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> list[str]:
    """Flags of runs on the built-in corpus, whose tokenizer here is its bytes: nothing has to be trained for it."""
    with pytest.MonkeyPatch.context() as patched:
        spec = data.tokenizer_spec("bpe", data.PATTERN, [bytes([byte]) for byte in range(256)])
        patched.setattr(data, "train_bpe", lambda lines, vocab_size: spec)
        size = PRESETS["tiny"].vocab_size
        folder = data.prepare("toy", tmp_path_factory.mktemp("cache"), propose=size, quiet=True)
    return [f"--data={folder}", f"--device={DEVICE}", "--preset=tiny"]


def test_the_default_run_learns(prepared, tmp_path):
    updates, (before, *_, after) = run(prepared, tmp_path / "run", "--mode=bcp", "--p=1", "--max-updates=20")
    assert updates[0]["loss"] == pytest.approx(math.log(257), rel=0.05)
    assert len(updates) == 20 and after["val_loss"] < before["val_loss"]
    if torch.cuda.is_bf16_supported(including_emulation=False):
        assert checkpoint.read_config(tmp_path / "run")["flags"]["dtype"] == "bfloat16"


def test_a_compiled_bfloat16_step_of_117m_is_that_of_plain_float32():
    torch.manual_seed(0)
    model = Transformer(PRESETS["117m"]).to(DEVICE)
    x, y = torch.randint(16384, (2, 8, 512)).to(DEVICE)
    found = []
    for forward, half in ((torch.compile(model), True), (model, False)):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            loss = forward(x, y)
        loss.backward()
        found.append((loss.item(), torch.cat([w.grad.flatten() for w in model.parameters()])))
        model.zero_grad()
    (ours, gradient), (plain, wanted) = found
    assert ours == pytest.approx(plain, rel=2e-3) and plain == pytest.approx(math.log(16384), rel=0.05)
    assert torch.cosine_similarity(gradient, wanted, dim=0) > 0.99
    assert gradient.norm() == pytest.approx(wanted.norm().item(), rel=0.05)


@pytest.mark.parametrize("compiled", ["--no-compile", "--compile"])
@pytest.mark.parametrize("dtype", ["--dtype=float32", "--dtype=bfloat16"])
def test_a_resumed_run_is_the_same_to_the_bit(prepared, tmp_path, compiled, dtype):
    """With torch's deterministic kernels. Others add up in any order, so that no two runs agree to the last bit."""
    flags = [*prepared, "--mode=bcp", "--goal=5.2", "--eval-every=100", compiled, dtype]
    torch.use_deterministic_algorithms(True)
    try:
        run(flags, tmp_path / "whole", "--max-updates=12")
        run(flags, tmp_path / "parts", "--max-updates=5")
        run([], tmp_path / "parts", "--resume", "--max-updates=12")
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_too_little_memory_is_one_line_that_names_the_flag(prepared, tmp_path, capsys):
    flags = [*prepared, "--batch-size=4096", "--max-updates=1", "--no-compile", f"--out={tmp_path / 'run'}"]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(5e8 / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        status = train.main(get_args(flags))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1 and last.startswith("train.py: ") and "--grad-accum=2" in last
