"""The folder of a run: choosing, opening and locking it, saving a run and going on with it, so that nothing is lost.

A file is written beside its place, flushed to disk, and renamed over the old one: whatever happens in between, one of
the two is whole. The last two checkpoints are kept. Every file ends with a digest of its content, which is checked
before it is read, and reading never runs code from it (torch.load with weights_only). A lock keeps a second process out
of a run's folder.
"""

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None

import numpy as np
import torch

import data
import flags
import journal
from model import Config
from tasks import TASKS

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
CONFIG = "config.json"
AVERAGE = "average.pt"
TOKENIZER = "tokenizer.json"
LOCK = "lock"
# What else stands in a run's folder, to the letter: what a run that is replaced takes with it.
OWN = re.compile(rf"(checkpoint(-previous)?|average|weights-\d+)\.pt|average\.json|{re.escape(journal.FILE)}|"
                 rf"eval-({'|'.join(TASKS)}|aoa)(-average)?(-2025)?\.jsonl?|untrained\.json")  # fmt: skip
MARK, DIGEST_SIZE = b"blake2b:", 16  # at the end of every file, the digest after the mark


class CheckpointError(ValueError):
    """A run folder or checkpoint that cannot be used; its message is one line."""


# --- The folder -------------------------------------------------------------------------------------------------------


def choose(args: argparse.Namespace) -> Path:
    """The run folder: --out, or the next free number. Raises ValueError if --out holds what would be lost."""
    if args.out is None:
        name = f"{args.mode}-p{args.p}" if args.mode == "bcp" else args.mode
        taken = [path.name.removeprefix(f"{name}-") for path in Path("out").glob(f"{name}-*")]
        return Path("out") / f"{name}-{1 + max((int(n) for n in taken if n.isdecimal()), default=0)}"
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out}: is a file; give a folder")
    begun = {LOCK, f"{CONFIG}.part"}  # what a run that was killed at once leaves
    if args.out.exists() and not {path.name for path in args.out.iterdir()} <= begun:
        try:
            _read_config(args.out)
        except CheckpointError:
            raise ValueError(f"--out={args.out}: is not empty and holds no run; give a new folder") from None
        if not (args.resume or args.overwrite):
            raise ValueError(f"--out={args.out}: holds a run; add --resume to go on or --overwrite to replace it")
    return args.out


def make(args: argparse.Namespace) -> Path:
    """Make the run folder if it is not there; a numbered one is always new, whoever else starts a run now."""
    while True:
        folder = choose(args)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(exist_ok=args.out is not None)
        except FileExistsError:  # another run took the number meanwhile
            continue
        return folder


def begin(folder: Path, args: argparse.Namespace, model: torch.nn.Module, corpus: data.Corpus, batches: int) -> None:
    """Write config.json and the tokenizer. A run that is replaced goes only now, when everything else is in order."""
    if args.out:
        choose(args)  # once more: another process may have made a run there while the text was prepared
    for file in [file for file in folder.iterdir() if OWN.fullmatch(file.name.removesuffix(".part"))]:
        file.unlink()
    config = {
        "flags": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "model": dataclasses.asdict(model.config),
        "parameters": sum(w.numel() for w in model.parameters()),
        "batches": batches,
        "corpus": {"folder": str(corpus.folder), **corpus.meta},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    write_config(folder, config)
    write(folder / TOKENIZER, (corpus.folder / TOKENIZER).read_bytes())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone. Raises CheckpointError if another process holds it.

    The system lets go of the lock when its process ends, however it ends; the empty file stays, and says nothing.
    """
    with open(folder / LOCK, "ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder}: another process is at work on this run; wait for it or stop it, or give another --out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
                raise
        yield


# --- Files ------------------------------------------------------------------------------------------------------------


def save(file: Path, state: dict, previous: Path | None = None) -> None:
    """Write tensors, numbers, strings, and lists and dicts of these; what `file` held before is kept as `previous`.

    The file is one that torch.load reads, with a digest of its content at the end: torch itself does not notice a
    flipped bit in a weight. Raises OSError (a full disk, say), the old file then still whole.
    """
    with _written(file) as f:
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)

        def write(chunk: bytes) -> int:
            digest.update(chunk)
            return f.write(chunk)

        try:
            torch.save(state, SimpleNamespace(write=write, flush=f.flush))
        except RuntimeError as error:  # torch hides a full disk behind it
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        f.write(MARK + digest.digest())
    if previous is not None and file.exists():
        link = _part(previous)
        link.unlink(missing_ok=True)
        try:
            os.link(file, link)  # so that at no moment there is no checkpoint
        except OSError:  # a file system without hard links
            with _written(previous) as f, open(file, "rb") as old:
                shutil.copyfileobj(old, f)
        os.replace(link, previous)
    os.replace(_part(file), file)


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")


@contextlib.contextmanager
def _written(file: Path) -> Iterator[BinaryIO]:
    """Write beside `file`; in the end it is on the disk, to be renamed. After an OSError nothing is left of it."""
    _part(file).unlink(missing_ok=True)
    try:
        with open(_part(file), "x+b") as f:  # not through a symbolic link
            yield f
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        _part(file).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from None


def write(file: Path, content: bytes) -> None:
    """Replace a file. Raises OSError, the old one then still whole."""
    with _written(file) as f:
        f.write(content)
    os.replace(_part(file), file)


def load(file: Path) -> dict:
    """What `save` wrote, on the CPU. Raises CheckpointError if the file is missing or not, to the bit, what it was."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the folder of a run that has saved a checkpoint")
    with open(file, "rb") as f:
        end = f.seek(0, os.SEEK_END) - len(MARK) - DIGEST_SIZE
        digest = _digest(f, max(end, 0))
        if end < 0 or f.read() != MARK + digest:
            raise CheckpointError(
                f"{file}: damaged or not a checkpoint of this program; take a copy of it, if there is one"
            )
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception:  # the digest is right, but anybody can make one; torch refuses code in a dozen ways
        raise CheckpointError(
            f"{file}: not a checkpoint of this program, or one that would run code: refused"
        ) from None


def _digest(f: BinaryIO, length: int) -> bytes:
    """blake2b of the first `length` bytes; leaves the file there."""
    f.seek(0)
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    while length > 0 and (chunk := f.read(min(length, 1 << 20))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.digest()


def fill(module: torch.nn.Module, state: dict, file: Path) -> None:
    """Put saved weights into `module`. Raises CheckpointError, naming the first one whose name or size does not fit."""
    check(state, module.state_dict(), file)
    module.load_state_dict(state)


def fill_moments(optimizer: torch.optim.AdamW, state: dict, file: Path) -> None:
    """Put saved moments into AdamW, whose fused step reads beyond any that are too small. Raises CheckpointError."""
    W = [w for group in optimizer.param_groups for w in group["params"]]
    own = {i: {"step": torch.zeros(()), "exp_avg": w, "exp_avg_sq": w} for i, w in enumerate(W)}
    check(state.get("state"), own, file, "moments")
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def check(saved: object, own: object, file: Path, name: str = "") -> None:
    """Compare the parts of something saved with those it is to replace: names, types, and sizes of tensors.

    Raises CheckpointError, naming the first that does not fit.
    """
    there, here = _parts(saved, name), _parts(own, name)
    for part in here | there:
        if there.get(part) != here.get(part):
            raise CheckpointError(f"{file}: a checkpoint of other sizes, {part} is {there.get(part)} there and "
                                  f"{here.get(part)} by the run's {CONFIG}; the two must be of one run")  # fmt: skip


def _parts(x: object, name: str) -> dict[str, str]:
    if isinstance(x, dict | list):
        inside = x.items() if isinstance(x, dict) else enumerate(x)
        return {k: v for key, part in inside for k, v in _parts(part, f"{name}.{key}".lstrip(".")).items()}
    plain = isinstance(x, torch.Tensor) and x.layout == torch.strided and x.is_contiguous()
    return {name: f"{x.dtype} {tuple(x.shape)}" if plain else type(x).__name__}


def write_config(folder: Path, config: dict) -> None:
    write(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def read_config(folder: Path) -> dict:
    """The config.json of a run. Raises CheckpointError if it is missing or damaged, or the tokenizer beside it is."""
    config = _read_config(folder)
    try:
        known, tokenizer = config["corpus"]["files"]["tokenizer.json"]["blake2b"], folder / "tokenizer.json"
    except (KeyError, TypeError):
        return config  # made by hand, say
    if tokenizer.is_file() and data.file_digest(tokenizer) != known:
        raise CheckpointError(f"{tokenizer} is damaged or of another run; its own is in the prepared corpus too")
    return config


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: no run there (no {CONFIG}); give a folder that train.py wrote") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{folder / CONFIG}: damaged, not JSON") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("flags", "model")):
        raise CheckpointError(f"{folder / CONFIG}: damaged, without the flags and the model of a run")
    try:
        Config(**config["model"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: not of a run that train.py wrote ({error})") from None
    return config


# --- Saving and going on ----------------------------------------------------------------------------------------------


def save_run(folder: Path, state: dict) -> None:
    """Keep the state of a run, and the one before; on the disk not before the record up to it is."""
    with open(folder / journal.FILE, "ab") as f:
        os.fsync(f.fileno())
    save(folder / NAME, state, previous=folder / PREVIOUS)


def load_run(folder: Path, args: argparse.Namespace, text: dict) -> dict:
    """The state that `save_run` kept. Raises CheckpointError if it is damaged, or not of the run with these flags."""
    file = folder / NAME
    try:
        state = load(file)
    except CheckpointError as error:
        there = (folder / PREVIOUS).exists()
        remedy = f"; to go on from the one before it, put {PREVIOUS} in its place" if there else ""
        raise CheckpointError(f"{error}{remedy}") from None
    if not all(isinstance(state.get(name), dict) for name in ("run", "model", "optimizer", "alpha", "stream")):
        raise CheckpointError(f"{file}: not a checkpoint to go on from, or one of an older version")
    if changed := flags.different(args, state["run"]["flags"]):
        raise CheckpointError(f"{file}: of another run, by {CONFIG}: it has {changed}; put back its own")
    known = state["run"]["text"]  # an older run does not know the order
    if {name: text.get(name) for name in known} != known:
        raise CheckpointError(f"{file}: of another run, or --data={args.data} is not the text that it was trained on, "
                              "or not in its order (by --aoa-file, say)")  # fmt: skip
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(f"{folder / TOKENIZER}: missing; copy it from the prepared text")
    return state


def go_on(folder: Path, update: int, args: argparse.Namespace, kept: set[int]) -> None:
    """The folder as it was at the checkpoint's update, for a run that goes on from there."""
    cut_metrics(folder, update)
    for at, file in kept_weights(folder):  # of evaluations that are made again, or that a longer run does not make
        if at > update or at not in kept:
            file.unlink()
    config = read_config(folder)
    config["flags"] |= {name: getattr(args, name) for name in {"epochs"} | flags.FILES}  # raised, or moved
    write_config(folder, config)


def cut_metrics(folder: Path, update: int) -> None:
    """Drop what metrics.jsonl holds beyond `update`, a half-written last line too, so that no update stands twice.

    Raises CheckpointError if the file is missing, ends before `update`, or is damaged elsewhere than at its end.
    """
    file = folder / journal.FILE
    try:
        records = journal.read(folder)
    except ValueError as error:
        raise CheckpointError(f"{error}; put it back, or make it an empty file to go on without the record") from None
    kept = [record for record in records if record["update"] <= update]
    reached = kept[-1]["update"] if kept else 0
    if file.stat().st_size and reached < update:
        raise CheckpointError(
            f"{file}: ends at update {reached}, before the checkpoint's {update}; put it back, or make it an empty "
            "file to go on without the record so far"
        )
    write(file, b"".join(json.dumps(record).encode() + b"\n" for record in kept))


def kept_weights(folder: Path) -> list[tuple[int, Path]]:
    """Updates and files of the weights that were kept, in order."""
    return sorted((int(file.stem.removeprefix("weights-")), file) for file in folder.glob("weights-*.pt")
                  if OWN.fullmatch(file.name))  # fmt: skip
