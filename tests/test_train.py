"""Whole runs at tiny sizes: what each regime shows the model, that runs resume exactly, that wrong use is one line."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import checkpoint
import data
import train
from model import Config, Transformer

ROOT = Path(__file__).resolve().parents[1]
SIZES = [
    "--n-layer=1",
    "--n-embd=16",
    "--n-head=2",
    "--n-kv-head=1",
    "--n-mlp=24",
    "--block-size=16",
    "--batch-size=16",
]


@pytest.fixture
def flags(text_file, cache):
    """Flags of a run that takes a second."""
    return [f"--data={text_file}", f"--cache={cache}", "--vocab-size=400", "--device=cpu", *SIZES, "--lr=0.01",
            "--warmup=3", "--eval-every=1000", "--norms-every=1"]  # fmt: skip


def run(flags, out, *more) -> tuple[list[dict], list[dict]]:
    """Train into `out`; the update and the evaluation records of its metrics.jsonl."""
    assert train.main(train.get_args([*flags, f"--out={out}", *more])) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], [r for r in records if "val_loss" in r]


def weights(out) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoint.pt")["model"]


def n_batches(flags, tmp_path) -> int:
    """How many batches the text of these flags makes."""
    args = train.get_args([*flags, f"--out={tmp_path / 'none'}"])
    return train.start(args).stream.n_batches


# --- The regimes ------------------------------------------------------------------------------------------------------


def test_random_and_curriculum_visit_every_batch_once_an_epoch(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    for mode in ("random", "curriculum"):
        updates, _ = run(flags, tmp_path / mode, f"--mode={mode}", "--epochs=2")
        assert len(updates) == 2 * N and {u["repeat"] for u in updates} == {1}
        epochs = [[u["batch"] for u in updates if u["epoch"] == e] for e in (1, 2)]
        in_order = list(range(N))
        assert sorted(epochs[0]) == sorted(epochs[1]) == in_order
        assert (epochs[0] == epochs[1] == in_order) == (mode == "curriculum")
        assert mode == "curriculum" or epochs[0] != epochs[1]
        assert {u["alpha"] for u in updates} == {u["pull_norm"] for u in updates} == {None}


def test_curriculum_repeat_shows_each_batch_ten_times_running_in_one_pass(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    updates, _ = run(flags, tmp_path / "run", "--mode=curriculum-repeat")
    assert [u["batch"] for u in updates] == [batch for batch in range(N) for _ in range(10)]
    assert [u["repeat"] for u in updates] == N * list(range(1, 11))
    assert {u["epoch"] for u in updates} == {1}


def test_all_regimes_have_the_same_budget_and_max_updates_cuts_it_without_rescaling(flags, tmp_path):
    N = n_batches(flags, tmp_path)
    lrs = {}
    for mode in ("random", "curriculum", "curriculum-repeat", "bcp"):
        whole, _ = run(flags, tmp_path / mode, f"--mode={mode}", "--epochs=2", "--lr-schedule=cosine", "--goal=5")
        assert len(whole) == 2 * N and whole[-1]["tokens"] == 2 * N * 16 * 16
        lrs[mode] = [u["lr"] for u in whole]
    assert lrs["random"] == lrs["curriculum"] == lrs["curriculum-repeat"] == lrs["bcp"]
    part, _ = run(flags, tmp_path / "cut", "--mode=random", "--epochs=2", "--lr-schedule=cosine", "--max-updates=9")
    assert [u["lr"] for u in part] == lrs["random"][:9]


def test_bcp_repeats_a_batch_until_alpha_has_converged(flags, tmp_path):
    updates, _ = run(flags, tmp_path / "run", "--mode=bcp", "--goal=5.6", "--epochs=3", "--eta=0.5", "--max-repeats=30")
    batches = sorted({(u["epoch"], u["batch"]) for u in updates})
    assert len(batches) > 3 and [batch for _, batch in batches[:4]] == [0, 1, 2, 3]
    for epoch, batch in batches[:-1]:  # the last one may have been cut by the budget
        alphas = [1.0] + [u["alpha"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        losses = [u["loss"] for u in updates if (u["epoch"], u["batch"]) == (epoch, batch)]
        falls, stop = 0, None
        for k in range(1, len(alphas)):
            before = max(alphas[k - 1], 0.0)
            assert alphas[k] == pytest.approx(before + 0.5 * (losses[k - 1] - 5.6), abs=1e-12)
            falls = falls + 1 if alphas[k] < before else 0
            if falls >= 2 and alphas[k] < 1:
                stop = k
                break
        assert stop == len(losses) or len(losses) == 30  # it ends at the update that brings convergence, not later


def test_fact_1_alpha_is_one_plus_eta_times_the_summed_excess(flags, tmp_path):
    """Unrolled: alpha_n = 1 + eta sum (L_k - goal). So, with threshold 1, a batch converges when its mean loss over all
    repeats is down to the goal, whatever eta is."""
    for eta in (0.02, 0.2):
        out = tmp_path / f"eta{eta}"
        updates, _ = run(flags, out, "--mode=bcp", "--goal=5.5", "--epochs=3", f"--eta={eta}")
        batches = {}
        for u in updates:
            batches.setdefault((u["epoch"], u["batch"]), []).append(u)
        finished = list(batches.values())[:-1]
        assert len(finished) >= 2
        for repeats in finished:
            assert min(u["alpha"] for u in repeats) > 0  # no clamp reached
            excess = [u["loss"] - 5.5 for u in repeats]
            for n, u in enumerate(repeats, 1):
                assert u["alpha"] == pytest.approx(1 + eta * sum(excess[:n]), abs=1e-9)
            assert sum(excess) < 0
            if len(excess) > 2 and max(excess[-3:-1]) < 0:  # patience was met one update before: not converged by then
                assert sum(excess[:-1]) >= 0


@pytest.mark.parametrize("method", [["--p=1"], ["--p=2"], ["--p=1", "--prox"]])
def test_updates_equal_a_plain_reference(flags, tmp_path, method):
    """The method written out again from its description, one weight tensor at a time, without bcp.py."""
    more = ["--mode=bcp", "--goal=5.8", "--C=0.001", "--max-updates=25", "--lr-schedule=cosine", *method]
    updates, _ = run(flags, tmp_path / "run", *more)
    state = train.start(train.get_args([*flags, f"--out={tmp_path / 'again'}", *more]))
    torch.manual_seed(0)
    model = Transformer(state.model.config)
    stream, budget = state.stream, state.budget
    decay = [w for w in model.parameters() if w.dim() > 1]
    plain = [w for w in model.parameters() if w.dim() == 1]
    adamw = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), foreach=False, fused=False)  # fmt: skip
    alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    for k in range(25):
        factor = (k + 1) / 3 if k < 3 else 0.5 * (1 + math.cos(math.pi * (k - 3) / (budget - 3)))
        for group in adamw.param_groups:
            group["lr"] = 0.01 * factor
        x, y = map(torch.from_numpy, stream.blocks())
        adamw.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        new = alpha + 0.1 * (loss.item() - 5.8)
        for w in model.parameters():
            w.grad *= max(new, 0.0)
        adamw.step()
        C = 0.001 * factor
        with torch.no_grad():
            for w, a in zip(model.parameters(), anchor, strict=True):
                distance = w - a
                if "--prox" in method:
                    w.copy_(a + distance.sign() * (distance.abs() - C).clamp(min=0))
                else:
                    w -= C * (distance.sign() if "--p=1" in method else distance)
        assert updates[k]["batch"] == stream.batch and updates[k]["loss"] == pytest.approx(loss.item(), abs=5e-3)
        falls = falls + 1 if new < alpha else 0
        alpha = max(new, 0.0)
        if falls >= 2 and alpha < 1:
            stream.advance()
            alpha, falls, anchor = 1.0, 0, [w.detach().clone() for w in model.parameters()]
    assert updates[-1]["batch"] >= 1  # at least one batch had converged
    for name, w in weights(tmp_path / "run").items():  # (sign() amplifies rounding where a weight is near its anchor)
        torch.testing.assert_close(w, model.state_dict()[name], atol=5e-3, rtol=0)


def test_norms_tell_how_far_step_pull_and_anchor_are(flags, tmp_path):
    updates, _ = run(flags, tmp_path / "run", "--mode=bcp", "--C=0.5", "--p=2", "--max-updates=1", "--warmup=0")
    u = updates[0]  # one step s from the anchor, pulled back by half of it
    assert u["pull_norm"] == pytest.approx(u["step_norm"] / 2, rel=1e-4)
    assert u["anchor_dist"] == pytest.approx(u["step_norm"] / 2, rel=1e-4) and u["step_norm"] > 0


def test_training_learns(flags, tmp_path):
    _, evaluations = run(flags, tmp_path / "run", "--mode=random", "--epochs=4")
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 1.5
    assert evaluations[0]["val_loss"] == pytest.approx(math.log(400), abs=0.2)


def test_gradient_accumulation_equals_one_large_batch(flags, tmp_path):
    whole, _ = run(flags, tmp_path / "whole", "--mode=bcp", "--max-updates=8")
    parts, _ = run(flags, tmp_path / "parts", "--mode=bcp", "--max-updates=8", "--grad-accum=4")
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["alpha"] == pytest.approx(other["alpha"], abs=1e-4)


def test_average_is_the_mean_of_the_last_evaluations_weights(flags, tmp_path):
    out, more = tmp_path / "run", ["--mode=random", "--eval-every=2", "--average-last=2", "--save-every=4"]
    run(flags, out, *more, "--max-updates=12")
    one, two = (checkpoint.load(out / f"weights-{update}.pt") for update in (10, 12))
    average = checkpoint.load(out / "average.pt")["model"]
    for name, w in average.items():
        torch.testing.assert_close(w, (one[name] + two[name]) / 2)
    kept = sorted(int(file.stem.removeprefix("weights-")) for file in out.glob("weights-*.pt"))
    assert kept == [6, 8, 10, 12]  # 6 and 8 for the checkpoint before the last, at update 8


def test_learning_rate_schedules():
    factors = [train.lr_factor(update, 100, 10, "constant") for update in (0, 4, 9, 10, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert [train.lr_factor(u, 110, 10, "cosine") for u in (10, 60)] == pytest.approx([1.0, 0.5])
    assert [train.lr_factor(u, 100, 10, "wsd") for u in (10, 80, 90, 99)] == pytest.approx([1.0, 1.0, 0.5, 0.05])


def test_a_goal_that_is_too_low_is_said_and_a_better_one_suggested(flags, tmp_path, capsys):
    run(flags, tmp_path / "run", "--mode=bcp", "--goal=0.1", "--max-repeats=4", "--max-updates=12")
    out = capsys.readouterr().out
    assert "unconverged         3 of 3" in out and "--goal=0.1 is too low" in out
    suggestion = float(out.split("try --goal=")[1].split()[0])
    updates, _ = run(flags, tmp_path / "better", "--mode=bcp", f"--goal={suggestion}", "--max-updates=12")
    assert 0.1 < suggestion < 6.5 and updates[-1]["batch"] >= 1


# --- Saving and resuming ----------------------------------------------------------------------------------------------


def same_run(one: Path, other: Path) -> None:
    for name, w in weights(one).items():
        assert torch.equal(w, weights(other)[name]), name
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


@pytest.mark.parametrize("mode", ["random", "curriculum", "curriculum-repeat", "bcp"])
def test_resuming_gives_bit_identical_weights(flags, tmp_path, mode):
    more = [f"--mode={mode}", "--goal=4.5", "--lr-schedule=cosine", "--eval-every=7", "--average-last=2"]
    run(flags, tmp_path / "whole", *more, "--max-updates=31")
    for stop in (13, 14, 31):
        run(*((flags, tmp_path / "parts", *more) if stop == 13 else ([], tmp_path / "parts", "--resume")),
            f"--max-updates={stop}")  # fmt: skip
        if mode in ("curriculum-repeat", "bcp") and stop == 13:  # in the middle of a batch's repeats
            state = checkpoint.load(tmp_path / "parts" / "checkpoint.pt")
            assert state["progress"]["repeat"] > 0 and len(state["anchor"]) == (mode == "bcp") * 14
    whole, parts = (json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-2])["loss"]
                    for name in ("whole", "parts"))  # fmt: skip
    assert whole == parts
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(tmp_path / "parts")[name]), name
    assert torch.equal(*(checkpoint.load(tmp_path / name / "average.pt")["model"]["model.norm.weight"]
                         for name in ("whole", "parts")))  # fmt: skip


def test_a_run_cut_off_after_its_last_checkpoint_repeats_no_update(flags, tmp_path):
    more = ["--mode=bcp", "--save-every=5"]
    run(flags, tmp_path / "whole", *more, "--max-updates=12")
    run(flags, tmp_path / "parts", *more, "--max-updates=10")
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as metrics:
        metrics.write(
            '{"update": 11, "loss": 9.9}\n{"update": 12, "lo'
        )  # written after the checkpoint, and half-written
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    evaluation = next(i for i, line in enumerate(lines) if '"update": 10, "val_loss"' in line)
    (tmp_path / "parts" / "metrics.jsonl").write_text("\n".join(lines[:evaluation] + lines[evaluation + 1 :]))
    run(flags, tmp_path / "parts", "--resume", "--max-updates=12")
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves_cleanly(flags, tmp_path, number, status):
    command = [sys.executable, "train.py", *flags, "--mode=bcp", "--goal=5.5", "--epochs=300", "--eval-every=100000"]
    out = tmp_path / "cut"
    process = subprocess.Popen([*command, f"--out={out}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 40:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status and b"Traceback" not in stderr and b"--resume" in stdout
    saved = checkpoint.load(out / "checkpoint.pt")["progress"]["update"]
    assert saved >= 39
    run([], out, "--resume", f"--max-updates={saved + 10}")
    more = ["--mode=bcp", "--goal=5.5", "--epochs=300", "--eval-every=100000"]
    run(flags, tmp_path / "whole", *more, f"--max-updates={saved + 10}")
    same_run(tmp_path / "whole", out)


def test_resume_without_a_checkpoint_starts_over_and_on_a_finished_run_says_so(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--resume", "--max-updates=3")  # nothing there yet
    (out / "checkpoint.pt").unlink()
    updates, _ = run(flags, out, "--resume", "--max-updates=3")
    assert [u["update"] for u in updates] == [1, 2, 3]
    capsys.readouterr()
    run([], out, "--resume", "--max-updates=3")
    assert "is finished after 3 updates" in capsys.readouterr().out


def test_a_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"x": torch.zeros(3)})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(file, {"x": torch.ones(3)})
    assert torch.equal(checkpoint.load(file)["x"], torch.zeros(3))


def test_every_flipped_bit_and_every_cut_of_a_checkpoint_is_noticed(tmp_path):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"x": torch.arange(3000.0), "n": [1, 2.5, "three"]})
    assert torch.load(file, weights_only=True)["n"] == [1, 2.5, "three"]  # plain torch reads it too
    whole, places = file.read_bytes(), random.Random(0)
    for _ in range(60):
        place = places.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << places.randrange(8)
        for content in (bytes(flipped), whole[:place]):
            file.write_bytes(content)
            with pytest.raises(checkpoint.CheckpointError, match="damaged"):
                checkpoint.load(file)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    file = tmp_path / "checkpoint.pt"
    torch.save({"model": Evil()}, file)
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of this program"):
        checkpoint.load(file)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken_only_when_asked(flags, tmp_path, capsys):
    more = ["--mode=bcp", "--save-every=4"]
    run(flags, tmp_path / "whole", *more, "--max-updates=14")
    out = tmp_path / "parts"
    run(flags, out, *more, "--max-updates=10")  # checkpoints at 8 and 10
    damaged = (out / "checkpoint.pt").read_bytes()[:-7] + b"x" * 7
    (out / "checkpoint.pt").write_bytes(damaged)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args([f"--out={out}", "--resume", "--max-updates=14"]))
    assert stopped.value.code == 2
    one_line(capsys, "checkpoint.pt: damaged")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    run([], out, "--resume=previous", "--max-updates=14")
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(out)[name]), name
    updates = [
        json.loads(line)["update"] for line in (out / "metrics.jsonl").read_text().splitlines() if "alpha" in line
    ]
    assert updates == list(range(1, 15))


def test_run_folders_are_numbered_and_hold_what_later_programs_need(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train.main(train.get_args([*flags, "--mode=bcp", "--p=2", "--max-updates=2"])) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["bcp-p2-1", "bcp-p2-2"]
    updates, _ = run([], Path("out/bcp-p2-1"), "--resume", "--max-updates=3")
    assert [u["update"] for u in updates] == [1, 2, 3]
    files = {path.name for path in Path("out/bcp-p2-1").iterdir()}
    assert files == {"config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint-previous.pt", "tokenizer.json"}
    config = json.loads(Path("out/bcp-p2-1/config.json").read_text())
    assert config["flags"]["p"] == 2 and config["flags"]["seed"] == 0 and config["versions"]["torch"]
    first = json.loads(Path("out/bcp-p2-1/metrics.jsonl").read_text().splitlines()[1])
    wanted = "update epoch batch repeat loss alpha lr step_norm pull_norm anchor_dist tokens"
    assert set(wanted.split()) <= set(first)


def test_training_from_a_prepared_folder_needs_no_tokenizer_library(flags, text_file, cache, tmp_path):
    prepared = data.prepare(str(text_file), cache, vocab_size=400, quiet=True)
    program = ("import sys; sys.modules['rustbpe'] = sys.modules['tiktoken'] = None\n"
               "import train; sys.exit(train.main(train.get_args(sys.argv[1:])))")  # fmt: skip
    command = [
        sys.executable,
        "-c",
        program,
        f"--data={prepared}",
        *SIZES,
        "--max-updates=2",
        f"--out={tmp_path / 'r'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Wrong use --------------------------------------------------------------------------------------------------------


def one_line(capsys, wanted: str) -> None:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("train.py: error: ") and wanted in err, err


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
    ],
)
def test_wrong_flags_are_one_line_before_torch_is_imported(wrong, wanted):
    command = [sys.executable, "-X", "importtime", "train.py", wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(lines) == 1 and wanted in lines[0]
    assert "| torch" not in done.stderr and "| numpy" not in done.stderr


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
    ],
)
def test_wrong_inputs_are_one_line_and_leave_nothing_behind(flags, tmp_path, capsys, wrong, wanted):
    files = {"EMPTY": b"", "LATIN1": b"caf\xe9\n", "FILE": b"x"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    for name in files:
        wrong = [flag.replace(name, str(tmp_path / name)) for flag in wrong]
    with pytest.raises(SystemExit) as stopped:
        train.main(train.get_args([*flags, f"--out={out}", *wrong]))
    assert stopped.value.code == 2 and not out.exists()
    one_line(capsys, wanted)


def test_a_run_is_not_overwritten_unless_asked(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    (out / "eval-toy.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for wrong in ([], ["--overwrite", "--vocab-size=60000"], ["--resume", "--seed=1"], ["--resume", "--n-layer=2"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train.main(train.get_args([*flags, f"--out={out}", *wrong]))
        assert stopped.value.code == 2
        one_line(capsys, {0: "holds a run", 1: wrong[-1].split("=")[0]}[bool(wrong)] if wrong else "holds a run")
        assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    run(flags, out, "--overwrite", "--max-updates=2", "--seed=1")
    assert not (out / "eval-toy.json").exists() and len((out / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_checkpoint_of_other_sizes_or_a_damaged_one_is_refused(flags, tmp_path, capsys):
    out = tmp_path / "run"
    run(flags, out, "--max-updates=3")
    state = checkpoint.load(out / "checkpoint.pt")
    other = Transformer(Config(n_layer=2, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=400))
    checkpoint.save(out / "checkpoint.pt", state | {"model": other.state_dict()})
    whole = (out / "checkpoint.pt").read_bytes()
    for content, wanted in ((whole, "a checkpoint of other sizes"), (whole[:-500], "damaged"), (b"", "damaged")):
        (out / "checkpoint.pt").write_bytes(content)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train.main(train.get_args([f"--out={out}", "--resume", "--max-updates=5"]))
        assert stopped.value.code == 2 and (out / "checkpoint.pt").read_bytes() == content
        one_line(capsys, wanted)


def test_real_text_runs_with_a_goal_made_for_it(shared, cache, tmp_path):
    """A few small files of child speech and stories; speaker labels do not count in the difficulty."""
    part = tmp_path / "text"
    part.mkdir()
    for name in ("childes/NA_Bliss.txt", "children_stories/african_storybook_en.txt"):
        (part / Path(name).name).write_bytes((shared / "corpus" / name).read_bytes())
    flags = [f"--data={part}", f"--cache={cache}", "--vocab-size=1024", "--device=cpu", *SIZES]
    updates, evaluations = run(flags, tmp_path / "run", "--mode=bcp", "--max-updates=20")
    assert len(updates) == 20 and evaluations[-1]["toy"] is None and evaluations[-1]["val_loss"] > 0
    corpus = data.open_prepared(data.prepare(str(part), cache, vocab_size=1024, quiet=True))
    assert corpus.line_label.any() and not corpus.line_label.all()
    goal = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]["goal"]
    assert updates[-1]["loss"] < updates[0]["loss"] and 3 < goal < 5
