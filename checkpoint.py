"""Writing and reading the state of a run, so that nothing is lost on the way.

A file is written beside its place, flushed to disk, and renamed over the old one: whatever happens in between, one of
the two is whole. The last two checkpoints are kept. Every file ends with a digest of its content, which is checked
before it is read, and reading never runs code from it (torch.load with weights_only).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import torch

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
AVERAGE = "average.pt"
MARK, DIGEST_SIZE = b"blake2b:", 16  # at the end of every file, the digest after the mark


class CheckpointError(ValueError):
    """A run folder or checkpoint that cannot be used; its message is one line."""


def save(file: Path, state: dict, previous: Path | None = None) -> None:
    """Write tensors, numbers, strings, and lists and dicts of these; what `file` held before is kept as `previous`.

    The file is one that torch.load reads, with a digest of its content at the end: torch itself does not notice a
    flipped bit in a weight. Raises OSError (a full disk, say), the old file then still whole.
    """
    beside = file.with_name(file.name + ".part")
    try:
        with open(beside, "w+b") as f:
            torch.save(state, f)
            digest = _digest(f, f.seek(0, os.SEEK_END))
            f.write(MARK + digest)
            f.flush()
            os.fsync(f.fileno())
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if previous is not None and file.exists():
        link = previous.with_name(previous.name + ".part")
        link.unlink(missing_ok=True)
        os.link(file, link)  # so that at no moment there is no checkpoint
        os.replace(link, previous)
    os.replace(beside, file)


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
    return torch.load(file, map_location="cpu", weights_only=True)


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
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def read_config(folder: Path) -> dict:
    """The config.json of a run. Raises CheckpointError if there is none or it is damaged."""
    try:
        return json.loads((folder / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: no run there (no {CONFIG}); give a folder that train.py wrote") from None
    except ValueError:
        raise CheckpointError(f"{folder / CONFIG}: damaged, not JSON") from None


def cut_metrics(folder: Path, update: int) -> None:
    """Drop what metrics.jsonl holds beyond `update`, a half-written last line too, so that no update stands twice."""
    file = folder / METRICS
    kept = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            if json.loads(line)["update"] <= update:
                kept.append(line + "\n")
        except ValueError:
            continue
    beside = file.with_name(METRICS + ".part")
    beside.write_text("".join(kept))
    os.replace(beside, file)


def save_weights(folder: Path, update: int, state: dict) -> None:
    """Keep the weights of one evaluation, for their average."""
    save(folder / f"weights-{update}.pt", state)


def drop_weights(folder: Path, last: int, upto: int) -> None:
    """Of the weights kept by `save_weights` up to an update, delete all but the last few."""
    files = [file for update, file in _weights(folder) if update <= upto]
    for file in files[: len(files) - last]:
        file.unlink()


def drop_weights_after(folder: Path, update: int) -> None:
    """Delete the weights of evaluations after an update, which a run that goes on from there makes again."""
    for later, file in _weights(folder):
        if later > update:
            file.unlink()


def average_weights(folder: Path, last: int) -> dict:
    """The mean of the last few weights that were kept; written to average.pt too."""
    states = [load(file) for _, file in _weights(folder)[-last:]]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    save(folder / AVERAGE, {"model": mean})
    return mean


def _weights(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(file.stem.removeprefix("weights-")), file) for file in folder.glob("weights-*.pt"))
