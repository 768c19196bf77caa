"""Writing and reading the state of a run, so that nothing is lost on the way.

A file is written beside its place, flushed to disk, and renamed over the old one: whatever happens in between, one of
the two is whole. Reading never runs code from a file (torch.load with weights_only).
"""

import json
import os
from pathlib import Path

import torch

NAME = "checkpoint.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
AVERAGE = "average.pt"


class CheckpointError(ValueError):
    """A run folder or checkpoint that cannot be used; its message is one line."""


def save(file: Path, state: dict) -> None:
    """Write tensors, numbers, strings, and lists and dicts of these. Raises OSError, the old file then still whole."""
    beside = file.with_name(file.name + ".part")
    with open(beside, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, file)


def load(file: Path) -> dict:
    """What `save` wrote, on the CPU. Raises CheckpointError if the file is missing or damaged."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the folder of a run that has saved a checkpoint")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # whatever a damaged file makes the reader raise
        raise CheckpointError(f"{file}: damaged or not a checkpoint of this program") from None


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


def drop_weights(folder: Path, keep_last: int | None = None, after: int | None = None) -> None:
    """Delete the weights kept by `save_weights`, all but the last few, or those of updates after a given one."""
    files = _weights(folder)
    if keep_last is not None:
        files = files[: len(files) - keep_last]
    for update, file in files:
        if after is None or update > after:
            file.unlink()


def average_weights(folder: Path, last: int) -> dict:
    """The mean of the last few weights that were kept; written to average.pt too."""
    states = [load(file) for _, file in _weights(folder)[-last:]]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    save(folder / AVERAGE, {"model": mean})
    return mean


def _weights(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(file.stem.removeprefix("weights-")), file) for file in folder.glob("weights-*.pt"))
