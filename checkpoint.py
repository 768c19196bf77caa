"""Writing and reading the state of a run, so that nothing is lost on the way.

A file is written beside its place, flushed to disk, and renamed over the old one: whatever happens in between, one of
the two is whole. The last two checkpoints are kept. Every file ends with a digest of its content, which is checked
before it is read, and reading never runs code from it (torch.load with weights_only). A lock keeps a second process out
of a run's folder.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None

import torch

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
AVERAGE = "average.pt"
LOCK = "lock"
MARK, DIGEST_SIZE = b"blake2b:", 16  # at the end of every file, the digest after the mark


class CheckpointError(ValueError):
    """A run folder or checkpoint that cannot be used; its message is one line."""


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


def flush_metrics(folder: Path) -> None:
    """Put metrics.jsonl on the disk: no checkpoint is to survive a power cut that the record up to it does not."""
    with open(folder / METRICS, "ab") as f:
        os.fsync(f.fileno())


def cut_metrics(folder: Path, update: int) -> None:
    """Drop what metrics.jsonl holds beyond `update`, a half-written last line too, so that no update stands twice.

    Raises CheckpointError if the file is missing, ends before `update`, or is damaged elsewhere than at its end.
    """
    file, kept, reached = folder / METRICS, [], 0
    remedy = "put it back, or make it an empty file to go on without the record so far"
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; {remedy}")
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            at = int(json.loads(line)["update"])
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise CheckpointError(f"{file}: line {number} is damaged; mend it or delete that line") from None
            break
        if at > update:
            break
        reached = at
        kept.append(line.rstrip(b"\r\n") + b"\n")
    if lines and reached < update:
        raise CheckpointError(f"{file}: ends at update {reached}, before the checkpoint's {update}; {remedy}")
    with _written(file) as f:
        f.writelines(kept)
    os.replace(_part(file), file)


def save_weights(folder: Path, update: int, state: dict) -> None:
    """Keep the weights of one evaluation, for their average."""
    save(folder / f"weights-{update}.pt", {"model": state})


def drop_weights(folder: Path, last: int, upto: int) -> None:
    """Of the weights kept by `save_weights` up to an update, delete all but the last few."""
    files = [file for update, file in _weights(folder) if update <= upto]
    for file in files[: len(files) - last]:
        file.unlink()


def drop_weights_after(folder: Path, update: int, every: int) -> None:
    """For a run that goes on from an update: delete the weights of evaluations that it makes again.

    And of those it would not have made: where the run had ended between two of the evaluations that come `every` so
    many updates.
    """
    for at, file in _weights(folder):
        if at > update or at % every:
            file.unlink()


def average_weights(folder: Path, last: int) -> dict:
    """The mean of the last few weights that were kept; written to average.pt too."""
    states = [load(file)["model"] for _, file in _weights(folder)[-last:]]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    save(folder / AVERAGE, {"model": mean})
    return mean


def _weights(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(file.stem.removeprefix("weights-")), file) for file in folder.glob("weights-*.pt"))
