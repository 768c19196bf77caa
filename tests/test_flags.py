"""Wrong flags and wrong inputs: one line that says what would be right, and nothing is left behind."""

import subprocess
import sys

import pytest
from conftest import NANO, ROOT, check_refusal, refused

import data
from flags import get_args


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        ("--p=3", "--p: invalid choice: 3 (choose from 1, 2)"),
        ("--eta=-1", "--eta: '-1': must be a number above 0"),
        ("--C=nan", "--C: 'nan': must be a number of at least 0"),
        ("--C=inf", "--C: 'inf': must be a number of at least 0"),
        ("--batch-size=0", "--batch-size: '0': must be a whole number of at least 1"),
        ("--epochs=two", "--epochs: 'two': must be a whole number"),
        ("--device=tpu", "--device: 'tpu': must be auto, cpu, cuda, cuda:N or mps"),
        ("--mode=sorted", "--mode: invalid choice"),
        ("--vocab-size=99", "--vocab-size: '99': must be a whole number of at least 257 and at most 65536"),
        ("--beta2=1", "--beta2: '1': must be"),
        ("--resume", "--resume: needs --out=FOLDER"),
        ("--goal", "--goal: expected one argument"),
        ("--epoch=3", "unrecognized arguments: --epoch=3"),
        ("--out=", "--out: is empty"),
        (f"--n-layer={'9' * 400}", "9': must be a whole number of at least 1"),
        (f"--seed={'9' * 400}", "9': must be a whole number of at least 0 and at most"),
        ("--lr=1e999", "--lr: '1e999': must be a number above 0"),
    ],
)
def test_wrong_flags_are_one_line_before_torch_is_imported(wrong, wanted):
    command = [sys.executable, "-X", "importtime", "train.py", wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines(keepends=True)
    check_refusal("".join(line for line in lines if not line.startswith("import time:")), "train.py", wanted)
    assert done.returncode == 2 and "argparse" in done.stderr and "| torch" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        (["--data=nowhere"], "--data: 'nowhere' is no corpus; it takes toy, babylm-10m"),
        (["--data=EMPTY"], "--data"),
        (["--data=LATIN1"], "not UTF-8 at byte 3"),
        (["--vocab-size=60000"], "--vocab-size"),
        (["--block-size=100000"], "--block-size=100000"),
        (["--device=cuda:99"], "--device=cuda:99: not on this machine; it has cpu"),
        (["--n-head=3"], "--n-embd=16: must be an even multiple of --n-head=3"),
        (["--grad-accum=3"], "--grad-accum=3: must divide --batch-size=16"),
        (["--out=FILE"], "is a file; give a folder"),
        (["--resume"], "run: no run there (no config.json)"),
        (["--n-layer=1000000000"], "--n-layer=1000000000: must be a whole number from 1 to"),
        (["--replay=0.01"], "--replay=0.01: is no row of --batch-size=16; give a larger share"),
        (["--data-share=0.001"], "--data-share=0.001: leaves"),
    ],
)
def test_wrong_inputs_are_one_line_and_leave_nothing_behind(flags, tmp_path, wrong, wanted):
    files = {"EMPTY": b"", "LATIN1": b"caf\xe9\n", "FILE": b"x"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    for name in files:
        wrong = [flag.replace(name, str(tmp_path / name)) for flag in wrong]
    refused(tmp_path, ["train.py", *flags, f"--out={out}", *wrong], wanted)
    assert not out.exists()


def test_flags_of_another_mode_are_named(capsys, monkeypatch):
    def said(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        get_args()
        return capsys.readouterr().err

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    lines = said("--mode=random", "--goal=3", "--patience=3", "--repeats=2").splitlines()  # patience: as by default
    assert lines == [f"train.py: --{name} is read with --mode={mode} only"
                     for name, mode in (("goal", "bcp"), ("repeats", "curriculum-repeat"))]  # fmt: skip
    assert said("--mode=random", "--recipe=paper") == said("--mode=curriculum-repeat", "--repeats=2") == ""


def test_training_from_a_prepared_folder_needs_no_tokenizer_library(flags, text_file, cache, tmp_path):
    prepared = data.prepare(str(text_file), cache, vocab_size=400, quiet=True)
    program = ("import sys; sys.modules['rustbpe'] = sys.modules['tiktoken'] = None\n"
               "import flags, train; sys.exit(train.main(flags.get_args(sys.argv[1:])))")  # fmt: skip
    more = [*NANO, "--max-updates=2", f"--out={tmp_path / 'r'}"]
    command = [sys.executable, "-c", program, f"--data={prepared}", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
