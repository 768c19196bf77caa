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
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None

import numpy as np
import torch

import flags
import journal

if TYPE_CHECKING:
    from data import Corpus

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
CONFIG = "config.json"
AVERAGE = "average.pt"
TOKENIZER = "tokenizer.json"
LOCK = "lock"
MARK, DIGEST_SIZE = b"blake2b:", 16  # at the end of every file, the digest after the mark


class CheckpointError(ValueError):
    """A run folder or checkpoint that cannot be used; its message is one line."""


# --- The folder -------------------------------------------------------------------------------------------------------


def choose(args: argparse.Namespace) -> Path:
    """The run folder: --out, or the next free number. Raises ValueError if --out holds a run that would be lost."""
    if args.out is None:
        name = f"{args.mode}-p{args.p}" if args.mode == "bcp" else args.mode
        taken = [path.name.removeprefix(f"{name}-") for path in Path("out").glob(f"{name}-*")]
        return Path("out") / f"{name}-{1 + max((int(n) for n in taken if n.isdecimal()), default=0)}"
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out}: is a file; give a folder")
    holds_run = any((args.out / name).exists() for name in (CONFIG, NAME, journal.FILE))
    if holds_run and not (args.resume or args.overwrite):
        raise ValueError(f"--out={args.out}: holds a run; add --resume to go on with it or --overwrite to replace it")
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


def begin(folder: Path, args: argparse.Namespace, model: torch.nn.Module, corpus: "Corpus", batches: int) -> None:
    """Write config.json and the tokenizer. A run that is replaced goes only now, when everything else is in order."""
    if args.out:
        choose(args)  # once more: another process may have made a run there while the text was prepared
    for pattern in (CONFIG, "checkpoint*.pt", journal.FILE, "average.*", "weights-*.pt", "eval-*", "*.part"):
        for file in folder.glob(pattern):
            file.unlink()
    config = {
        "flags": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "model": dataclasses.asdict(model.config),
        "parameters": sum(w.numel() for w in model.parameters()),
        "batches": batches,
        "corpus": {"folder": str(corpus.folder), **corpus.meta},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    shutil.copyfile(corpus.folder / TOKENIZER, folder / TOKENIZER)
    write_config(folder, config)


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
        _save_tensors(state, f)
        digest = _digest(f, f.seek(0, os.SEEK_END))
        f.write(MARK + digest)
    if previous is not None and file.exists():
        link = _part(previous)
        link.unlink(missing_ok=True)
        os.link(file, link)  # so that at no moment there is no checkpoint
        os.replace(link, previous)
    os.replace(_part(file), file)


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")


@contextlib.contextmanager
def _written(file: Path) -> Iterator[BinaryIO]:
    """Write beside `file`; in the end it is on the disk, to be renamed. After an OSError nothing is left of it."""
    try:
        with open(_part(file), "w+b") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        _part(file).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from None


def _save_tensors(state: dict, f: BinaryIO) -> None:
    """torch.save, which hides a full disk behind a RuntimeError; this raises the OSError."""
    try:
        torch.save(state, f)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


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
        return torch.load(file, map_location="cpu", weights_only=True)
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


def _digest_of(file: Path) -> bytes:
    with open(file, "rb") as f:
        return _digest(f, file.stat().st_size)


def fill(module: torch.nn.Module, state: dict, file: Path) -> None:
    """Put saved weights into `module`. Raises CheckpointError, naming the first one whose name or size does not fit."""
    own = module.state_dict()
    for name in own.keys() | state.keys():
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (own, state)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{file}: a checkpoint of other sizes, {name} is {shapes[1]} there and {shapes[0]} by the run's "
                f"{CONFIG}; the two must be of one run"
            )
    module.load_state_dict(state)


def write_config(folder: Path, config: dict) -> None:
    with _written(folder / CONFIG) as f:
        f.write((json.dumps(config, indent=1) + "\n").encode())
    os.replace(_part(folder / CONFIG), folder / CONFIG)


def read_config(folder: Path) -> dict:
    """The config.json of a run. Raises CheckpointError if it is missing or damaged, or the tokenizer beside it is."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: no run there (no {CONFIG}); give a folder that train.py wrote") from None
    except ValueError:
        raise CheckpointError(f"{folder / CONFIG}: damaged, not JSON") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("flags", "model")):
        raise CheckpointError(f"{folder / CONFIG}: damaged, without the flags and the model of a run")
    try:
        known, tokenizer = config["corpus"]["files"]["tokenizer.json"]["blake2b"], folder / "tokenizer.json"
    except (KeyError, TypeError):
        return config  # made by hand, say
    if tokenizer.is_file() and _digest_of(tokenizer).hex() != known:
        raise CheckpointError(f"{tokenizer} is damaged or of another run; its own is in the prepared corpus too")
    return config


# --- Saving and going on ----------------------------------------------------------------------------------------------


def save_run(folder: Path, state: dict) -> None:
    """Keep the state of a run, and the one before; on the disk not before the record up to it is."""
    with open(folder / journal.FILE, "ab") as f:
        os.fsync(f.fileno())
    save(folder / NAME, state, previous=folder / PREVIOUS)


def identity(args: argparse.Namespace, text: dict) -> dict:
    """What a checkpoint has in common with its run and no other: the flags that change the result, and the text."""
    return {"flags": flags.of_result(args), "text": text}


def load_run(folder: Path, args: argparse.Namespace, text: dict) -> dict:
    """The state that `save_run` kept. Raises CheckpointError if it is damaged, or not of the run with these flags."""
    file = folder / NAME
    try:
        state = load(file)
    except CheckpointError as error:
        there = (folder / PREVIOUS).exists()
        remedy = f"; to go on from the one before it, put {PREVIOUS} in its place" if there else ""
        raise CheckpointError(f"{error}{remedy}") from None
    if not isinstance(state.get("run"), dict):
        raise CheckpointError(f"{file}: not a checkpoint to go on from, or one of an older version")
    if changed := flags.different(args, state["run"]["flags"]):
        raise CheckpointError(f"{file}: of another run, by {CONFIG}: it has {changed}; put back its own")
    if state["run"]["text"] != text:
        raise CheckpointError(f"--data={args.data}: not the text that {folder} was trained on")
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
    config["flags"]["epochs"] = args.epochs  # it may have been raised
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
    with _written(file) as f:
        f.writelines(json.dumps(record).encode() + b"\n" for record in kept)
    os.replace(_part(file), file)


# --- Weights of evaluations (--keep-weights) --------------------------------------------------------------------------


def save_weights(folder: Path, update: int, state: dict) -> None:
    """Keep the weights of one evaluation."""
    save(folder / f"weights-{update}.pt", {"model": state})


def kept_weights(folder: Path) -> list[tuple[int, Path]]:
    """Updates and files of the weights that were kept, in order."""
    return sorted((int(file.stem.removeprefix("weights-")), file) for file in folder.glob("weights-*.pt"))
