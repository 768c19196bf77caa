"""What happens on machines that are not here: GPUs, Macs, cards without bfloat16, little memory, a busy machine."""

import contextlib
import dataclasses
import functools
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import bcp
import checkpoint
import data
import evaluate
import flags as flags_of
import machine
import terminal
import train
from flags import get_args
from model import PRESETS, Config, Transformer, count_parameters

CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that works and has bfloat16, as far as questions about it go."""
    monkeypatch.setattr(machine, "cuda_trouble", lambda index=0: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


def filled(*words: str, device: torch.device = CUDA):
    """The flags as a run on that device has them."""
    args = get_args(list(words))
    flags_of.fill_in(args, machine.usual_preset(device, data.about_words(args.data)))
    return args


def test_the_preset_by_default_follows_the_text_and_the_machine(gpu, monkeypatch, tmp_path):
    text = tmp_path / "text.txt"
    with open(text, "wb") as file:
        file.truncate(60_000_000)  # ten million words, about
    assert filled().preset == "tiny"
    assert filled(f"--data={text}").preset == filled("--data=babylm-10m").preset == "117m"
    assert filled("--data=babylm-10m", device=torch.device("cpu")).preset == "tiny"
    assert filled("--preset=small").preset == "small"
    with open(text, "wb") as file:
        file.truncate(12_000_000)
    assert filled(f"--data={text}").preset == "small"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert filled("--data=babylm-10m").preset == "small"  # a T4


def test_the_default_run_on_a_gpu_leaves_its_warm_up(gpu, flags, tmp_path, capsys):
    assert train.start(get_args([*flags, f"--out={tmp_path / 'a'}"])).args.warmup == 3
    short = train.start(
        get_args([*flags, f"--out={tmp_path / 'b'}", "--data-share=1", "--epochs=1", "--batch-size=60"])
    )
    assert short.args.warmup == short.budget // 10 < 3
    run(flags, tmp_path / "c", "--warmup=20", "--max-updates=5")
    assert "ends at update 5, within its warm-up of 20" in capsys.readouterr().out


class Mps(torch.Tensor):
    """A tensor that refuses float64, as Apple's GPUs do; `cpu()` makes it an ordinary one."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Mps) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


@pytest.fixture
def on_mps():
    """A nano model whose weights are such tensors."""
    model = Transformer(Config(n_layer=1, n_embd=16, n_head=2, n_kv_head=1, n_mlp=32, vocab_size=50))
    for module in model.modules():
        for name, w in list(module._parameters.items()):
            module._parameters[name] = torch.nn.Parameter(w.detach().as_subclass(Mps)) if w is not None else None
    return model


def test_nothing_is_float64_on_a_device(on_mps):
    with pytest.raises(TypeError):
        next(on_mps.parameters()).double()
    x = np.arange(32).reshape(2, 16)
    assert 3 < evaluate.mean_loss(on_mps, x, x) < 5
    (scores,) = evaluate.log_probabilities(on_mps, [[([1, 2, 3], 0), ([4, 5], 1)]], eot=49)
    assert all(math.isfinite(score) and score < 0 for score in scores)
    loss = on_mps(torch.from_numpy(x), torch.from_numpy(x))
    loss.backward()
    assert type(loss.detach()) is Mps
    W = [w.detach() for w in on_mps.parameters()]
    for p in (1, 2):
        bcp.pull_back(W, [w.clone() for w in W], 0.1, p)
    assert bcp.clip_and_scale([w.grad for w in on_mps.parameters()], 1.0, 2.0).isfinite()


def test_outside_cuda_a_step_that_is_not_finite_is_not_taken_at_all(flags, tmp_path):
    nano = train.start(get_args([*flags, f"--out={tmp_path / 'a'}"]))
    taken = []
    nano.optimizer.step = lambda: taken.append(1)
    with pytest.raises(FloatingPointError, match="the gradient is nan"):
        train.step_if_finite(nano, {"loss": 1.0, "gradient": torch.tensor(math.nan)})
    train.step_if_finite(nano, {"loss": 1.0, "gradient": torch.tensor(1.0)})
    assert taken == [1] and not hasattr(nano.optimizer, "found_inf")


def test_on_cuda_the_step_is_on_its_way_before_the_host_looks_and_changes_nothing_if_not_finite(flags, tmp_path):
    nano = dataclasses.replace(train.start(get_args([*flags, f"--out={tmp_path / 'a'}"])), device=CUDA)
    W = list(nano.model.parameters())
    before = [w.detach().clone() for w in W]
    for number in (math.nan, 1.0):
        for w in W:
            w.grad = torch.full_like(w, number)
        with pytest.raises(FloatingPointError) if math.isnan(number) else contextlib.nullcontext():
            train.step_if_finite(nano, {"gradient": torch.tensor(number)})
        assert all(map(torch.equal, W, before)) == math.isnan(number)


def test_copies_to_and_from_cuda_do_not_wait(monkeypatch):
    done, host = [], torch.zeros(2)
    event = SimpleNamespace(record=lambda: done.append("record"), synchronize=lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch, "empty_like", lambda x, device, pin_memory: host)
    monkeypatch.setattr(host.__class__, "copy_", lambda self, x, non_blocking: done.append(("copy", non_blocking)))
    read = machine.copy_to_host(SimpleNamespace(device=CUDA))
    assert done == [("copy", True), "record"] and read() == [0.0, 0.0] and done[-1] == "wait"
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: done.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: done.append((device, non_blocking)))
    machine.copy_to_device(np.arange(3), CUDA)
    assert done[-2:] == ["pin", (CUDA, True)]


@pytest.mark.parametrize(
    ("dtype", "masked", "keys"),
    [(torch.bfloat16, False, 1), (torch.bfloat16, True, 2), (torch.float32, False, 2), (torch.float32, True, 2)],
)
def test_only_attention_that_a_gpu_is_fast_at_has_grouped_heads(dtype, masked, keys, monkeypatch):
    asked, real = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, mask, **more):
        asked.append((k.size(1), v.size(1), more["enable_gqa"]))
        return real(q, k, v, mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    config = Config(n_layer=1, n_embd=16, n_head=2, n_kv_head=1, n_mlp=32, vocab_size=50)
    for device in ("meta", "cpu"):
        with torch.device(device):
            x, mask = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, 8, dtype=torch.bool)
            Transformer(config).to(dtype).hidden(x, *((x, mask) if masked else ()))
    assert asked == [(keys, keys, keys == 1), (1, 1, True)]  # the CPU's takes both


def test_the_named_gpu_is_the_current_one(gpu, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", current.append)
    assert machine.pick_device("cuda:1") == torch.device("cuda", 1) and current == ["high", torch.device("cuda", 1)]
    assert machine.pick_device() == CUDA


def test_bfloat16_that_is_emulated_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert machine.pick_dtype("auto", CUDA) == torch.float32 and machine.pick_dtype("bfloat16", CUDA) == torch.bfloat16


def test_a_gpu_that_does_not_work_is_told_of_loudly_and_refused_by_name(monkeypatch, capsys):
    def broken(*shape, device=None):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch, "ones", broken)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert machine.pick_device().type == "cpu"
    assert "THE GPU OF THIS MACHINE IS NOT USED, only cpu: The NVIDIA driver on your" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--device=cuda: does not work: The NVIDIA driver"):
        machine.pick_device("cuda")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.pick_device().type == "cpu" and capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="not on this machine; it has cpu"):
        machine.pick_device("cuda")


def test_without_a_compiler_a_run_goes_on_without_compile_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert not machine.can_compile(torch.device("cpu"))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "torch.compile needs a C++ compiler" in err
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not machine.can_compile(CUDA)
    err = capsys.readouterr().err
    assert "needs a C compiler" in err and "Triton and a GPU of compute capability 7.0; going on without it" in err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_one_line_with_the_remedy(error, flags, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(Transformer, "forward", full)
    assert train.main(get_args([*flags, f"--out={tmp_path / 'a'}"])) == 1
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("train.py: out of memory; try --grad-accum=2")
    assert flags_of.less_memory(SimpleNamespace(batch_size=12, grad_accum=4, replay=0.0)) == "try --grad-accum=6"
    assert "--preset" in flags_of.less_memory(SimpleNamespace(batch_size=12, grad_accum=12, replay=0.0))


def test_evaluations_take_no_more_rows_at_a_time_than_updates(flags, tmp_path, monkeypatch):
    rows, real = [], Transformer.forward

    def watched(self, tokens, *rest, **more):
        rows.append(len(tokens))
        return real(self, tokens, *rest, **more)

    monkeypatch.setattr(Transformer, "forward", watched)
    run(flags, tmp_path / "a", "--grad-accum=4", "--max-updates=4", "--track-forgetting=2", "--mode=curriculum")
    assert max(rows) == 4 and len(rows) > 16


def test_a_text_of_less_than_a_batch_is_refused(flags, tmp_path):
    with pytest.raises(ValueError, match="--batch-size=1024: the text has .* less than a batch"):
        train.start(get_args([*flags, f"--out={tmp_path / 'a'}", "--batch-size=1024", "--replay=0.9"]))


def test_gradients_of_parts_are_averaged_over_processes_once(flags, tmp_path, monkeypatch):
    nano, parts, losses = train.start(get_args([*flags, "--grad-accum=4", f"--out={tmp_path / 'a'}"])), [], []

    class Shared:
        """In place of DistributedDataParallel."""

        def __call__(self, *batch, **more):
            return nano.model(*batch, **more)

        @contextlib.contextmanager
        def no_sync(self):
            parts.append(1)
            yield

    nano.forward = Shared()
    monkeypatch.setattr(machine, "n_processes", lambda: 2)
    monkeypatch.setattr(machine, "mean_over_processes", lambda x: losses.append(x) or x)
    L, _ = train.loss_and_gradient(nano, *machine.on_device(nano.stream.blocks(), nano.device))
    assert len(parts) == 3 and len(losses) == 1 and 5 < L < 7


def test_a_run_is_saved_by_time_and_once_at_its_end(flags, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save_run", lambda folder, state: saved.append(state["update"]))
    run(flags, tmp_path / "a", "--max-updates=6")
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    run(flags, tmp_path / "b", "--max-updates=3")
    run(flags, tmp_path / "c", "--max-updates=6", "--save-every=3")
    assert saved == [6, 1, 2, 3, 3, 6]


@pytest.mark.parametrize("more, graphs", [([], 1), (["--mode=lfr"], 1), (["--replay=0.25"], 2)])
def test_a_regime_is_compiled_into_one_graph_and_replayed_rows_into_one_more(
    more, graphs, flags, tmp_path, monkeypatch
):  # fmt: skip
    torch._dynamo.reset()
    nano = train.start(get_args([*flags, *more, f"--out={tmp_path / 'a'}"]))
    counter = CompileCounterWithBackend("aot_eager")
    own = functools.partial(torch.compile, backend=counter, fullgraph=True)  # a break is an error
    monkeypatch.setattr(torch, "compile", own)
    nano.forward = machine.for_all_processes(nano.model, compiled=True)
    nano.folder, nano.end = None, 4
    with contextlib.closing(train.Journal(nano, None)) as journal:
        train.train(nano, journal, [])
    assert counter.frame_count == graphs
    inputs = [n.meta["example_value"] for graph in counter.graphs for n in graph.graph.nodes if n.op == "placeholder"]
    assert all(isinstance(x, torch.Tensor) for x in inputs)  # a graph for all numbers of rows would have a symbol


def saved_bytes(preset: str, rows: int) -> tuple[int, int]:
    """What an update keeps for its backward pass without compile, bytes, and the parameters; nothing is computed."""
    kept = {}
    with FakeTensorMode():
        model = Transformer(PRESETS[preset])
        x = torch.zeros(rows, flags_of.PRESET_DEFAULTS[preset]["block_size"], dtype=torch.int64)

        def keep(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage()._cdata] = t.untyped_storage()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            assert model(x, x).dtype == torch.float32
        weights = {w.untyped_storage()._cdata for w in model.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights), count_parameters(model)


@pytest.mark.parametrize("preset", ["small", "117m", "115m", "372m"])
def test_the_table_of_memory_in_the_readme_is_what_is_counted(preset):
    """Beside what is kept there are weights, gradients, two moments and the anchor, of four bytes each."""
    row = re.search(rf"^\| {preset}, (\d+) x \d+ \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [float(cell) for cell in row[2].split(" | ")]
    for gigabytes, parts in zip(shown, (1, 2, 4, 8), strict=True):
        kept, parameters = saved_bytes(preset, int(row[1]) // parts)
        assert gigabytes == pytest.approx((kept + 20 * parameters) / 1e9, abs=0.05 if preset == "small" else 0.5)


@pytest.mark.parametrize(("load", "running", "own", "spin"), [
    (0.9, 2, {}, "0"),  # one other process, on one of two cores
    (0.1, 1, {}, "10000"),
    (1.8, 1, {}, "10000"),  # a run that has just ended
    (0.1, 3, {}, "10000"),  # what runs for a moment only
    (2.0, 3, {"GOMP_SPINCOUNT": "7"}, "7"),
    (2.0, 3, {"OMP_WAIT_POLICY": "ACTIVE"}, None),
    (None, None, {}, "10000"),  # a Mac
])  # fmt: skip
def test_threads_do_not_spin_on_a_busy_machine_unless_the_user_says_so(load, running, own, spin, monkeypatch, tmp_path):
    environ = dict(own)
    monkeypatch.setattr(terminal.os, "environ", environ)
    monkeypatch.setattr(terminal.os, "cpu_count", lambda: 2)
    if load is not None:
        (tmp_path / "loadavg").write_text(f"{load:.2f} 0.50 0.50 {running}/153 4711\n")
    monkeypatch.setattr(terminal, "Path", lambda name: tmp_path / Path(name).name)
    terminal.wait_politely()
    assert environ.get("GOMP_SPINCOUNT") == spin
    assert "torch" in sys.modules  # here it is too late for them; a program calls this first
