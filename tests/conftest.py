"""Corpora at tiny sizes, one made by hand from token ids, one from real lines of the built-in grammar; small files of
every task; a run that takes a second; what a refusal is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from chaos import NANO, program, text

import checkpoint
import data
import journal
import tasks
import toy
import train
from flags import get_args

torch.set_num_threads(1)  # at these sizes a second thread costs more than it brings
os.environ["OMP_NUM_THREADS"] = "1"  # the same for programs that tests start, so that their numbers agree

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def double():
    """Weights of 64 bits: AdamW makes a step of what rounding leaves of a gradient, and processors differ."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
    return text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of prepared corpora shared by the tests, so that each corpus is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def eval_files(tmp_path_factory) -> Path:
    """Small files of every task, EWoK and COMPS too, in their formats; the folders as the challenge calls them."""
    folder = tmp_path_factory.mktemp("eval")
    pairs = [pair for some in toy.minimal_pairs().values() for pair in some[:6]]
    s = [pair["sentence_good"].rstrip(" .") for pair in pairs]
    stories = [item | {"numops": i // 2 % 2} for i, item in enumerate(toy.entity_items()[:42])]
    for item in stories[::2]:  # in every second one an option is "nothing"
        item["options"] = [option.replace("nothing", s[0]) for option in item["options"]]
    lines = {
        "blimp_filtered/a": [pair | {"UID": uid} for uid, some in toy.minimal_pairs().items() for pair in some[:4]],
        "blimp_supplement/turns": [{k: pair[k] for k in ("sentence_good", "sentence_bad")} for pair in pairs],
        "ewok/ewok": [
            {"Domain": ("social", "spatial")[i % 2], "Context1": s[i], "Context2": s[i + 1], "Target1": s[i + 2] + ".",
             "Target2": s[i + 3] + "."} for i in range(40)
        ],
        "entity_tracking/regular": stories[:30],
        "entity_tracking/ambiref": stories[30:],
        "comps/comps_base": [
            {"prefix_acceptable": s[i], "prefix_unacceptable": s[i + 1], "property_phrase": s[i + 2]} for i in range(40)
        ],
        "comps/comps_wugs": [
            {"prefix_acceptable": s[i], "prefix_unacceptable": s[i + 1], "property_phrase": s[i + 2]} for i in range(40)
        ],
        "global_piqa_parallel/eng_latn": [
            {"prompt": s[i], "label": i % 4, "example_id": f"p{i}", **{f"solution{k}": s[i + k + 1] for k in range(4)}}
            for i in range(30)
        ],
        "global_piqa_nonparallel/eng_latn": [
            {"prompt": s[i], "label": i % 2, "example_id": f"n{i}", "solution0": s[i + 3], "solution1": s[i + 1]}
            for i in range(30)
        ],
        "wug_adj_nominalization/w": [{"sentences": f"{s[i]}\t{s[i + 1]}", "ratio": i % 7 / 7} for i in range(40)],
        "wug_past_tense/w": [{"sentences": "\t".join(s[i : i + 3]), "ratio": i % 5 / 5} for i in range(20)],
    }  # fmt: skip
    for name, records in lines.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    rng = np.random.default_rng(0)
    names = ["item", "word", "prev_item", "prev_word", *tasks.CONTROLS, "prev_length", *tasks.EYE_TRACKING]
    table = [[*names, tasks.SELF_PACED]]
    for sentence in s[:30]:
        words = sentence.split()
        for i in range(1, len(words)):
            before = [" ".join(words[: i - 1]), words[i - 1]] if i > 1 else ["", ""]
            table.append([" ".join(words[:i]), words[i], *before, *rng.uniform(1, 9, size=9).round(3)])
    table[5][4] = ""  # a word without a frequency
    table[9][0] = ""  # a missing context
    (folder / "reading").mkdir()
    (folder / "reading" / "reading_data.csv").write_text("\n".join(",".join(map(str, row)) for row in table) + "\n")
    return folder


# --- Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def flags(text_file, cache) -> list[str]:
    """Flags of a run that takes a second."""
    return [f"--data={text_file}", f"--cache={cache}", *NANO, "--eval-every=1000", "--norms-every=1"]


def run(flags: list[str], out: Path, *more: str) -> tuple[list[dict], list[dict]]:
    """Train into `out`; the update and the evaluation records of its metrics.jsonl."""
    assert train.main(get_args([*flags, f"--out={out}", *more])) == 0
    records = journal.read(out)
    return journal.updates(records), journal.evaluations(records)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / checkpoint.NAME)["model"]


def n_batches(flags: list[str], tmp_path: Path) -> int:
    """How many batches the text of these flags makes."""
    return train.start(get_args([*flags, f"--out={tmp_path / 'none'}"])).stream.n_batches


# --- Refusals ---------------------------------------------------------------------------------------------------------


def tree(place: Path) -> dict[str, bytes | None]:
    """What is in a folder: the content of every file; None stands for a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(place.rglob("*"))}


def check_refusal(stderr: str, name: str, *wanted: str) -> None:
    """One line that begins with the program's name and says what is wanted."""
    assert stderr.count("\n") == 1, stderr
    assert name.removesuffix(".py").replace("/", ".") in stderr.split(": ")[0]
    assert [part for part in wanted if part not in stderr] == [], stderr


def refused(safe: Path, words: list, *wanted: str, status: int = 2, folder: Path | None = None) -> None:
    """The command line `words`, typed in `folder`, ends in one line on stderr that says all of `wanted`, with exit
    status 2, or 1 where the machine is in the way; in the folder `safe` nothing is written, changed or deleted."""
    before = tree(safe)
    got, stderr = program(*words, folder=folder)
    check_refusal(stderr, str(words[0]), *wanted)
    assert got == status and tree(safe) == before
