"""Corpora at tiny sizes: one made by hand from token ids, one prepared from real lines of the built-in grammar."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import toy

torch.set_num_threads(1)  # at these sizes a second thread costs more than it brings
os.environ["OMP_NUM_THREADS"] = "1"  # the same for programs that tests start, so that their numbers agree

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder with real text and real evaluation files that lies beside a development checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data (real text and evaluation files) is not there")
    return SHARED


def corpus_of(documents: list[list[list[int]]], vocab_size: int, held_out=(), labels=None, seen=()) -> data.Corpus:
    """A corpus from token ids: documents of lines of tokens without end-of-text. Nothing is written to disk."""
    lines = [line for document in documents for line in document]
    eot = vocab_size - 1
    line_start = np.cumsum([0] + [len(line) + 1 for line in lines])
    return data.Corpus(
        folder=Path("none"),
        tokens=np.array([token for line in lines for token in (*line, eot)], dtype=np.uint16),
        line_start=line_start,
        line_label=np.array(labels or [0] * len(lines), dtype=np.uint8),
        line_seen=np.isin(np.arange(len(lines)), list(seen)),
        doc_start=np.cumsum([0] + [len(document) for document in documents]),
        doc_val=np.isin(np.arange(len(documents)), list(held_out)),
        meta={"vocab_size": vocab_size, "eot": eot},
        pairs=None,
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Some 2,500 words of the built-in corpus as a plain text file, an empty line between documents."""
    file = tmp_path_factory.mktemp("text") / "scenes.txt"
    file.write_text("\n\n".join("\n".join(scene) for scene in toy.documents(words=2500)) + "\n")
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of prepared corpora shared by the tests, so that each corpus is prepared once."""
    return tmp_path_factory.mktemp("cache")
