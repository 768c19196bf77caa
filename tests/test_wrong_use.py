"""Wrong uses of the command lines: one line on stderr, exit status 2 (wrong) or 1 (the machine), nothing changed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from chaos import NANO, SHORT
from conftest import refused, run

import checkpoint
import data

GRID = 'seeds = {seeds}\nreference = "a"\n[runs]\na = "--p={p}"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache, text_file) -> Path:
    """A folder with two runs of different texts, and things that are not what somebody takes them for."""
    made = tmp_path_factory.mktemp("made")
    text = made / "other.txt"
    text.write_text(text_file.read_text().replace("the", "thy"))
    flags = [f"--cache={cache}", *NANO, *SHORT, "--mode=random", "--max-updates=6"]
    for out, corpus in (("run", text_file), ("other", text)):
        run(flags, made / out, f"--data={corpus}")
    shutil.copytree(data.prepare(str(text), cache, vocab_size=400, quiet=True), made / "prepared")
    (made / "empty").mkdir()
    for name, content in {
        "file": b"x",
        "nothing.txt": b"",
        "latin1.txt": b"caf\xe9\n",
        "cut.txt.gz": b"\x1f\x8b\x08",
        "items/x.jsonl": b'{"sentence_good": 1}\n',
        "seeds.toml": GRID.format(seeds=["zero"], p=1).encode(),
        "runs.toml": GRID.format(seeds=[0], p=3).encode(),
    }.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(content)
    return made


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy of it to be spoilt."""
    return shutil.copytree(made, tmp_path / "place")


def check(place: Path, cache: Path, words: str, status: int, wanted: str) -> None:
    refused(place, words.replace("CACHE", str(cache)).split(), wanted, status=status, folder=place)


TRAIN = "train.py --cache=CACHE --device=cpu "
GO_ON = "train.py --cache=CACHE --resume --max-updates=9 "


@pytest.mark.parametrize(
    ("words", "status", "wanted"),
    [
        (TRAIN + "--seed=-1", 2, "--seed: '-1': must be"),
        (TRAIN + "--dtype=float16", 2, "--dtype: invalid choice"),
        (TRAIN + "--norms-every=0", 2, "--norms-every: '0': must be"),
        (TRAIN + "--resume=first --out=run", 2, "--resume: ignored explicit argument 'first'"),
        (TRAIN + "--mode=lfr --replay=0.5", 2, "--replay: not with --mode=lfr"),
        (TRAIN + "--mode=lfr --stream", 2, "--stream: not with --mode=lfr"),
        (TRAIN + "--stream --replay=0.5", 2, "--replay needs a buffer"),
        (TRAIN + "--resume", 2, "needs --out"),
        (TRAIN + "--resume --overwrite --out=run", 2, "give one of the two"),
        (TRAIN + "--data=nowhere", 2, "'nowhere' is no corpus"),
        (TRAIN + "--data=nothing.txt", 2, "holds no line of text"),
        (TRAIN + "--data=latin1.txt", 2, "not UTF-8 at byte 3"),
        (TRAIN + "--data=cut.txt.gz", 2, "cut.txt.gz is no whole .gz"),
        (TRAIN + "--data=empty", 2, "holds no text"),
        (TRAIN + "--data=prepared --vocab-size=300", 2, "was prepared with 400"),
        (TRAIN + "--data=prepared --batch-size=99999", 2, "--batch-size=99999"),
        (TRAIN + "--data=prepared --n-head=5", 2, "--n-head=5"),
        (TRAIN + "--data=prepared --grad-accum=5", 2, "--grad-accum=5"),
        (TRAIN + "--data=prepared --device=cuda:9", 2, "--device=cuda:9"),
        (TRAIN + "--data=prepared --out=file", 2, "is a file; give a folder"),
        (TRAIN + "--data=prepared --out=run", 2, "holds a run"),
        (TRAIN + "--data=prepared --out=prepared --overwrite", 2, "--out=prepared: is not empty and holds no run"),
        (TRAIN + "--data=prepared --out=../place", 2, "--out=../place: is not empty and holds no run"),
        (TRAIN + "--out=", 2, "--out: is empty"),
        (TRAIN + "--data=prepared --out=file/run", 1, "file"),
        ("train.py --data=other.txt --cache=file", 1, "file"),
        (GO_ON + "--out=run --seed=9 --goal=3", 2, "was started with no --goal, --seed=0"),
        (GO_ON + "--out=run --data=prepared", 2, "--data=prepared is not the text that"),
        ("evaluate.py", 2, "the following arguments are required: run"),
        ("evaluate.py nowhere", 2, "no run there"),
        ("evaluate.py file", 2, "no run there"),
        ("evaluate.py run --task=wug-of-the-year", 2, "must be some of toy, blimp"),
        ("evaluate.py run --task=blimp", 2, "--data"),
        ("evaluate.py run --task=blimp --data=empty", 2, "empty"),
        ("evaluate.py run --task=blimp --data=items", 2, "line 1"),
        ("evaluate.py prepared", 2, "no run there"),
        ("sample.py run --samples=0", 2, "--samples"),
        ("sample.py run --temperature=nan", 2, "--temperature"),
        ("sample.py nowhere", 2, "no run there"),
        ("sample.py run --device=cuda:9", 2, "--device=cuda:9"),
        ("toy.py --smaple", 2, "--smaple"),
        ("tools/calibrate.py --seeds=5", 2, "unrecognized arguments: --seeds=5"),
        ("data.py --vocab-size=1", 2, "--vocab-size=1"),
        ("data.py --val-share=1", 2, "--val-share"),
        ("data.py --data=nowhere", 2, "no corpus"),
        ("data.py --data=other.txt --cache=file", 1, "file"),
        ("tools/compare.py nowhere.toml", 2, "nowhere.toml"),
        ("tools/compare.py seeds.toml", 2, "seeds = ['zero']"),
        ("tools/compare.py runs.toml --jobs=0", 2, "--jobs"),
        ("tools/compare.py runs.toml --only none", 2, "'none' is not a run of"),
        ("tools/plot.py nowhere", 2, "no run there"),
        ("tools/plot.py run --out=file", 2, "is a file"),
        ("tools/export.py nowhere model", 2, "no run there"),
        ("tools/export.py run file", 2, "is a file"),
        ("tools/export.py run prepared", 2, "is not empty"),
        ("tools/export.py run other", 2, "holds a run"),
    ],
)
def test_wrong_flags_files_and_folders(place, cache, words, status, wanted):
    check(place, cache, words, status, wanted)


def take(name: str):
    """A file of the other run in the place of the run's own."""
    return lambda place: shutil.copyfile(place / "other" / name, place / "run" / name)


def cut(name: str):
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-20])


def drop(name: str):
    return lambda place: (place / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "words", "wanted"),
    [
        (take("checkpoint.pt"), GO_ON + "--out=run", "run/checkpoint.pt: of another run"),
        (take("config.json"), GO_ON + "--out=run", "run/tokenizer.json is damaged or of another run"),
        (take("tokenizer.json"), GO_ON + "--out=run", "run/tokenizer.json is damaged or of another run"),
        (take("tokenizer.json"), "evaluate.py run", "run/tokenizer.json is damaged or of another run"),
        (take("tokenizer.json"), "sample.py run", "run/tokenizer.json is damaged or of another run"),
        (take("tokenizer.json"), "tools/export.py run model", "run/tokenizer.json is damaged or of another run"),
        (drop("run/metrics.jsonl"), GO_ON + "--out=run", "run/metrics.jsonl: missing"),
        (drop("run/tokenizer.json"), GO_ON + "--out=run", "run/tokenizer.json: missing"),
        (drop("run/checkpoint.pt"), GO_ON + "--out=run", "put checkpoint-previous.pt in its place"),
        (drop("run/checkpoint.pt"), "evaluate.py run", "run/checkpoint.pt: no such file"),
        (lambda place: None, "evaluate.py run --weights=average", "run/average.pt: no such file"),
        (cut("run/checkpoint.pt"), "sample.py run", "run/checkpoint.pt: damaged"),
        (cut("run/config.json"), GO_ON + "--out=run", "run/config.json: damaged"),
        (cut("run/config.json"), "tools/export.py run model", "run/config.json: damaged"),
        (cut("prepared/tokens.bin"), TRAIN + "--data=prepared", "prepared/tokens.bin is damaged"),
        (cut("prepared/meta.json"), TRAIN + "--data=prepared", "prepared/meta.json is damaged"),
        (drop("prepared/index.npz"), TRAIN + "--data=prepared", "prepared/index.npz is missing"),
    ],
)
def test_mixed_and_damaged_runs(place, cache, spoil, words, wanted):
    spoil(place)
    check(place, cache, words, 2, wanted)


@pytest.mark.parametrize("more", ["--resume --max-updates=9", "--data=prepared --overwrite"])
def test_a_run_that_another_process_is_at_work_on(place, cache, more):
    with checkpoint.lock(place / "run"):
        check(place, cache, f"train.py --cache=CACHE --out=run {more}", 2, "another process is at work on this run")


@pytest.fixture
def read_only(place):
    """Nothing can be written into `place`. Permissions do not stop root, who mounts it anew instead."""
    if os.geteuid():
        folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        yield place
        for folder in folders:
            folder.chmod(0o755)
        return
    for flags in (["--bind", place, place], ["-o", "remount,bind,ro", place]):
        if subprocess.run(["mount", *flags], capture_output=True).returncode:
            pytest.skip("root, who no permission stops, may not mount a folder read-only here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize(
    "words",
    [
        GO_ON + "--out=run",
        TRAIN + "--data=prepared --out=run --overwrite",
        TRAIN + "--data=prepared --out=new",
        TRAIN + "--data=prepared",
        "evaluate.py run --task=blimp --data=good",
        "data.py --data=other.txt --cache=new",
        "tools/export.py run model",
    ],
)
def test_folders_that_cannot_be_written_to(made, cache, words, request):
    (made / "good").mkdir(exist_ok=True)
    (made / "good/x.jsonl").write_text('{"sentence_good": "a dog runs", "sentence_bad": "a dog run"}\n')
    check(request.getfixturevalue("read_only"), cache, words, 1, "")
