"""The machine under a run: its devices and their numbers, copies that do not wait, several processes.

Nothing here knows of the method. Several processes are started by torchrun --nproc_per_node=N train.py ... Each has
all the weights and a share of the rows of every batch. Gradients and L are averaged, so that all take the same
decisions; the first process does the writing.
"""

import contextlib
import ctypes
import datetime
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

# --- Devices ----------------------------------------------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, as torch's current one; "auto" is CUDA, else Apple's MPS, else the CPU.

    ValueError if it is not there or does not work. A GPU that "auto" leaves out is told of on stderr.
    """
    kind, _, index = name.partition(":")
    trouble = cuda_trouble(int(index or os.environ.get("LOCAL_RANK", 0))) if kind in ("auto", "cuda") else ""
    available = {"cuda": trouble is None, "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [kind for kind, is_there in available.items() if is_there]
    if name == "auto" and trouble:
        print(f"THE GPU OF THIS MACHINE IS NOT USED, only {there[0]}: {trouble}", file=sys.stderr)
    if name != "auto" and kind not in there:
        why = f"does not work: {trouble}" if trouble else f"not on this machine; it has {', '.join(there)}"
        raise ValueError(f"--device={name}: {why}")
    device = torch.device(there[0] if name == "auto" else name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, on cards that have it
        if index:
            torch.cuda.set_device(device)  # else `copy_to_host` would wait for another device's stream
    return device


def cuda_trouble(index: int = 0) -> str | None:
    """None if the GPU works; else why, in torch's words, one that is there does not, or "" if there is none."""
    try:
        torch.ones(1, device=f"cuda:{index}").add(1)  # a driver that is too old, a card that torch has no code for
        return None
    except (RuntimeError, AssertionError) as error:  # AssertionError: this torch is one without CUDA
        return str(error).splitlines()[0] if shutil.which("nvidia-smi") else ""


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" is bfloat16 on a GPU that has it, float32 elsewhere.

    A card without bfloat16 emulates it, slower than float32; float16 would need its gradients scaled.
    """
    if name == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_it else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def usual_preset(device: torch.device, words: float) -> str:
    """The preset by default for a text of so many words, about: what trains in hours there, and is not too large."""
    if device.type == "cpu" or words < 1e6:
        return "tiny"
    return "117m" if words >= 5e6 and pick_dtype("auto", device) == torch.bfloat16 else "small"


def can_compile(device: torch.device) -> bool:
    """Is what torch.compile needs there? If not, a line on stderr says what is missing."""
    gpu = device.type == "cuda"
    compilers = [os.environ.get("CC" if gpu else "CXX"), *(("cc", "gcc") if gpu else ("c++", "g++")), "clang", "cl"]
    needed = {
        "a C compiler" if gpu else "a C++ compiler": any(shutil.which(name) for name in compilers if name),
        "Python's header files": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "Triton": not gpu or importlib.util.find_spec("triton") is not None,
        "a GPU of compute capability 7.0": not gpu or torch.cuda.get_device_capability(device) >= (7, 0),
    }
    if missing := " and ".join(name for name, there in needed.items() if not there):
        print(f"torch.compile needs {missing}; going on without it, which is slower", file=sys.stderr)
    return not missing


@contextlib.contextmanager
def short_of_memory(remedy: str) -> Iterator[None]:
    """Where memory runs out, which torch tells in a RuntimeError, an OSError of one line, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("out of memory|allocate memory|not enough memory|ALLOC_FAILED", str(error)):
            raise
        raise OSError(f"out of memory; {remedy}") from None


def reuse_memory() -> None:
    """Have the C library keep freed memory for the next tensors, as a GPU's allocator does.

    On a CPU up to a tenth of an update goes into the kernel's page faults else: glibc hands a batch's logits back to
    the system at each update and asks for them again. With other C libraries nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too ...
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: ... which keeps up to 1 GiB that is free


# --- Copies that do not wait ------------------------------------------------------------------------------------------


def copy_to_device(x: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device. A GPU copies it while the host goes on, and need not wait for the host."""
    if device.type != "cuda":
        return torch.from_numpy(x).to(device)
    return torch.from_numpy(x).pin_memory().to(device, non_blocking=True)


def copy_to_host(x: Tensor) -> Callable[[], float | list[float]]:
    """Start copying a scalar, or a few, to the host; the function returned waits for them and gives their values.

    Called between forward and backward pass, it lets a GPU work on the backward pass while the host reads the loss
    and decides about alpha.
    """
    if x.device.type != "cuda":
        return x.tolist
    host = torch.empty_like(x, device="cpu", pin_memory=True)
    host.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return host.tolist()

    return read


# --- Signals ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """A list that the signals asking a run to end are put into, so that it can save first; ignored ones stay so."""
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # of nohup, for example
    old = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# --- Several processes ------------------------------------------------------------------------------------------------


def join_processes(device: torch.device) -> torch.device:
    """Under torchrun, meet the other processes. Returns this one's device."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Torchrun ends the others when a process dies; the time limit is only for an evaluation that they wait through.
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


def n_processes() -> int:
    """How many processes train this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Is this the process that writes?"""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The others enter the block when the first process has left it."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of all processes' x, the same to the last bit in each; in place."""
    if distributed.is_initialized():
        distributed.all_reduce(x)
        x /= n_processes()
    return x


def for_all_processes(model: torch.nn.Module, compiled: bool) -> Callable:
    """The model's forward pass: compiled if wanted; of several processes, one whose gradients are averaged."""
    forward = DistributedDataParallel(model, gradient_as_bucket_view=True) if n_processes() > 1 else model
    return torch.compile(forward, dynamic=False) if compiled else forward  # replayed rows get a graph of their own


def keep_gradients(forward: Callable, more: bool) -> contextlib.AbstractContextManager:
    """If more are to come, each process adds up its own gradients within it; the last backward pass averages them."""
    return forward.no_sync() if more and n_processes() > 1 else contextlib.nullcontext()


def on_device(blocks: tuple[np.ndarray, np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Inputs and targets (B, T) as tensors on the device; of several processes each one's share of the rows."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return tuple(copy_to_device(np.split(x, n_processes())[rank], device) for x in blocks)
