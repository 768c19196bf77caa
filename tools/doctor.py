"""What this machine is, which preset and flags fit it, and whether it can train: python -m tools.doctor

Each device tries some updates, with and without torch.compile; all of it takes under two minutes. Every problem is one
line with what would help, and makes the exit status 1.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import bcp
import machine
from data import one_line
from flags import PRESET_DEFAULTS
from model import PRESETS, Transformer

ROOT = Path(__file__).resolve().parents[1]
TIME = 95  # seconds for all trials together
# What the error of a trial says, and what would help; the first that fits counts.
REMEDIES = {
    "out of memory": "close other programs on this device, or give --preset=tiny or a larger --grad-accum",
    "no kernel image": "the card is too old for this torch; install an older one, or give --device=cpu",
    "compiler|Python.h|command": "apt install build-essential python3-dev, or give --no-compile",
    "triton|inductor|dynamo": "reinstall torch together with its triton, or give --no-compile",
    "did not fall": "wrong numbers; update torch and the driver, or give another --device",
    "not within": "close other programs and try again, or give another --device",
    "": "paste this into an issue; until then give --no-compile, or another --device",
}


def memory(device: str) -> tuple[float, float]:
    """Free memory and all of it, in GB; of a Mac, all that its GPU should take; 0 where the system does not tell."""
    if device == "mps":
        return (torch.mps.recommended_max_memory() / 1e9,) * 2
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return free / 1e9, total / 1e9
    names, known = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"), getattr(os, "sysconf_names", ())
    free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 1e9 if name in known else 0.0 for name in names)
    return free, total


def describe(device: str) -> str:
    """A device in one line."""
    shown = "{:.1f} of {:.1f} GB free".format(*memory(device))
    if device == "mps":
        return f"Apple GPU, {shown}"
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        with torch.cuda.device(device):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        return f"{card.name}, {shown}, {bf16}, capability {card.major}.{card.minor}"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name, bf16 = re.search(r"model name\s*: (.+)", info), re.search(r"\b(avx512_bf16|amx_bf16)\b", info)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name[1] if name else platform.machine()}, {cores} cores{load}, {shown}, {'' if bf16 else 'no '}bf16"


def compiler(device: str) -> str | None:
    """The compiler that torch.compile needs for the device; None if it, or triton, is missing, and on a Mac's GPU."""
    gpu = device.startswith("cuda")
    if device == "mps" or (gpu and importlib.util.find_spec("triton") is None):
        return None
    names = (os.environ.get("CC", ""), "gcc", "clang", "cc") if gpu else (os.environ.get("CXX", ""), "g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def plan(device: str, compiled: bool) -> tuple[str, int]:
    """The preset and --grad-accum for ten million words. What 117m needs of memory is computed, not measured."""
    if device == "cpu":
        return "tiny", 1
    if machine.pick_dtype("auto", torch.device(device)) == torch.float32:
        return "small", 1
    batch = 16 if compiled else 26  # GB, beyond 3 for weights, moments and anchor
    parts = next((n for n in (1, 2, 4, 8) if 3 + batch / n < 0.95 * memory(device)[0]), None)
    return ("117m", parts) if parts else ("small", 1)


def problems_at_sight(gpus: list[str]) -> list[str]:
    """What is wrong before any trial, each with what would help."""
    problems = []
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11):
        problems.append(f"torch {torch.__version__} is too old; pip install -r requirements.txt")
    for name in ("tqdm", "tiktoken", "rustbpe"):
        if importlib.util.find_spec(name) is None:
            only = ", so --data must be a folder that data.py prepared" if name == "rustbpe" else ""
            problems.append(f"the package {name} is missing{only}; pip install {name}")
    if not gpus and shutil.which("nvidia-smi"):
        reason = "it finds no card"
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            reason = one_line(error)
        problems.append(f"an NVIDIA driver, but torch uses no GPU ({reason}); update the driver, or install the torch "
                        "that pytorch.org names for its CUDA")  # fmt: skip
    if any(gpu.startswith("cuda") and not compiler(gpu) for gpu in gpus):
        problems.append("no C compiler or no triton, so no torch.compile: slower, and more memory; apt install "
                        "build-essential, pip install triton, or give --no-compile")  # fmt: skip
    if (free := shutil.disk_usage(".").free / 1e9) < 5:
        problems.append(f"{free:.1f} GB left on this disk, a checkpoint of 117m has 1.9; give --out=FOLDER on another")
    return problems


def trial(name: str, preset: str, parts: int, compiled: bool) -> str:
    """Four updates on one batch, and what they took. RuntimeError if the loss does not fall."""
    device, sizes = torch.device(name), PRESET_DEFAULTS[preset]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    dtype, model = machine.pick_dtype("auto", device), Transformer(PRESETS[preset]).to(device)
    forward, W = machine.for_all_processes(model, compiled), list(model.parameters())
    anchor, optimizer = [w.detach().clone() for w in W], torch.optim.AdamW(W, lr=1e-3, fused=True)
    x = torch.randint(PRESETS[preset].vocab_size, (sizes["batch_size"], sizes["block_size"])).to(device)
    losses, seconds = [], []
    for _ in range(4):
        began = time.perf_counter()
        losses.append(0.0)
        for part in x.chunk(parts):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = forward(part, part) / parts
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        bcp.pull_back(W, anchor, 1e-5, p=1, prox=True)
        W[0].sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss did not fall, from {losses[0]:.3f} to {losses[-1]:.3f}")
    peak = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device.type == "cuda" else ""
    return f"{str(dtype)[6:]}, {seconds[0]:.1f} s at first, then {x.numel() / min(seconds):,.0f} tokens/s{peak}"


def tell(*what) -> None:
    """Print what a trial says, or end with one line about its error."""
    try:
        print(trial(*what))
    except Exception as error:  # torch raises many kinds, and each is to be reported
        sys.exit(f"{type(error).__name__}: {one_line(error)}")


def tried(what: tuple, seconds: float) -> tuple[bool, str]:
    """A trial in a process of its own, which may crash or hang: whether it went well, and what it says."""
    command = [sys.executable, "-c", f"from tools.doctor import tell; tell{what!r}"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f"not within {seconds:.0f} s"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return not done.returncode, lines[-1] if lines and done.returncode in (0, 1) else f"status {done.returncode}"


def say(name: str, text: str) -> None:
    print(f"{name:9} {text}", flush=True)


def examine(device: str, compiled: bool, end: float) -> list[str]:
    """Print what a trial says, which may last until `end`; returns its problem, if there is one, in a list."""
    size, parts = ("nano", 1) if compiled and device == "cpu" else plan(device, compiled)  # more takes minutes there
    well, said = tried((device, size, parts, compiled), max(1.0, end - time.monotonic()))
    name = f"{size}{f' --grad-accum={parts}' if parts > 1 else ''}{', compiled' if compiled else ''}"
    say("", f"{name}: {said}")
    if well or (size == "nano" and said.startswith("not within")):  # on a CPU no run compiles unless told to
        return []
    remedy = next(remedy for sign, remedy in REMEDIES.items() if re.search(sign, said, re.IGNORECASE))
    return [f"{device}, {name}: {said}; {remedy}"]


def main(argv: list[str] | None = None) -> int:
    """The whole program; returns its exit status."""
    parser = argparse.ArgumentParser("tools.doctor", argparse.SUPPRESS, description=__doc__.split("\n\n")[0])
    parser.add_argument("--no-compile", action="store_true", help="no trial with torch.compile (default: off)")
    args, end = parser.parse_args(argv), time.monotonic() + TIME
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    gpus += ["mps"] if torch.backends.mps.is_available() else []
    say("software", f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, compiler {compiler('cpu') or 'none'}")  # fmt: skip
    problems = problems_at_sight(gpus)
    for device in [*gpus, "cpu"]:
        say(device, describe(device))
        for compiled in (False, True) if compiler(device) and not args.no_compile else (False,):
            problems += examine(device, compiled, end)
    say("use", "python train.py --mode=bcp --p=1")
    if gpus:
        preset, parts = plan(gpus[0], compiler(gpus[0]) is not None)
        more = f" --grad-accum={parts}" if parts > 1 else ""
        say("", f"... --data=FOLDER --preset={preset}{more}, for ten million words")
    for problem in problems or ["none"]:
        say("problem", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
