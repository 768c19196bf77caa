"""tools/export.py: the exported folder, read by transformers, against our own model and tiktoken, on real runs."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rustbpe
import torch
from conftest import NANO

import checkpoint
import data
import evaluate
import flags
import journal
import toy
import train
from model import Config
from tools import average, export

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing may ask for a network
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[1]
# What GPT-2's tokenizer splits by (tiktoken's gpt2); the tokens themselves need a network.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

ODD = [
    "", " ", "a", " a", "\t", "\t\ta\t", "a\r\nb\r\n", "a\n\n\nb", "\r", "a \t b", "*MOT:\tdo you want it ?",
    "Mrs. B-2:\tyes", "don't I'LL they'Ve '\u017f 'tis ''s", "= = = Title = = =", "!" * 40, "\u200b\u200b a\u00a0b",
    "\u0085\u2028\u3000x\u3000", "na\u00efve e\u0301 e\u0301\u0302\u0323", "\u00c5ngstr\u00f6m \ufb01sh \u00df",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f \U0001f3f4\u200d\u2620\ufe0f",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663\u0664",
    "\u4f60\u597d\u4e16\u754c", "a\x00b\x00", "\x00", "\ufeffx", "\U0010ffff", "x\u0300" * 40, "\u00bd\u2167 1\u00bd",
    "the dogs near the cat run . " * 20, "Donaudampfschifffahrtsgesellschaft" * 3, "aaaaaaaaa" * 9, "ababababa" * 9,
    *(" " * n for n in range(1, 41)), *("the" + " " * n + "dogs" for n in range(1, 41)),
    *("\n" * n + "x" for n in range(15, 20)), *("1234567"[:n] for n in range(1, 8)),
    *(f"in {'1234567'[:n]} days" for n in range(1, 8)),
]  # fmt: skip


def make_run(cache: Path, out: Path, *more: str) -> Path:
    common = ["--data=toy", f"--cache={cache}", "--device=cpu", "--n-layer=2", "--n-embd=16", "--n-head=2",
              "--n-kv-head=1", "--n-mlp=24", "--block-size=16", "--batch-size=16", "--lr=0.03",
              "--warmup=1"]  # fmt: skip
    assert train.main(flags.get_args([*common, *more, f"--out={out}"])) == 0
    return out


@pytest.fixture(scope="module")
def run_folder(cache, tmp_path_factory):
    """A run of a few updates on the built-in corpus, with averaged weights and a score of evaluate.py."""
    out = make_run(cache, tmp_path_factory.mktemp("runs") / "run", "--max-updates=12", "--eval-every=4",
                   "--keep-weights=evaluations")  # fmt: skip
    average.average(out, [8, 12])
    score(out, "blimp", "last", 61.25)
    score(out, "blimp-average", "average", 62.5)
    return out


def score(run: Path, name: str, weights: str, value: float, **other) -> None:
    """A result of evaluate.py for the run's weights as they are now."""
    model, _, config = evaluate.load_run(run, torch.device("cpu"), weights)
    row = {"name": "blimp", "score": value, "items": 67000, "low": 60.5, "high": 62.0}
    of_weights = {"update": config["update"], "digest": evaluate.digest_of(model)} | other
    (run / f"eval-{name}.json").write_text(json.dumps({"task": "blimp"} | of_weights | {"scores": [row]}))


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "model"
    export_main(run_folder, folder)
    return folder


@pytest.fixture(scope="module")
def pair(run_folder, exported):
    """transformers' tokenizer and tiktoken's."""
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    return theirs, data.load_tokenizer(run_folder / "tokenizer.json")


def export_main(*argv) -> None:
    export.main(export.get_parser().parse_args([str(a) for a in argv]))


def spans(encoding, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """tiktoken's ids and the characters (first, last + 1) that each token's bytes belong to."""
    ids = encoding.encode_ordinary(text)
    char_of_byte = [i for i, char in enumerate(text) for _ in char.encode()]
    offsets, start = [], 0
    for token in ids:
        end = start + len(encoding.decode_single_token_bytes(token))
        offsets.append((char_of_byte[start], char_of_byte[end - 1] + 1))
        start = end
    return ids, offsets


def check_same(theirs, ours, texts: list[str]) -> None:
    plain = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    whole = theirs(texts)
    for i, text in enumerate(texts):
        ids, offsets = spans(ours, text)
        assert plain["input_ids"][i] == ids, repr(text)
        assert plain["offset_mapping"][i] == offsets, repr(text)
        assert whole["input_ids"][i] == [ours.eot_token, *ids], repr(text)
        assert theirs.decode(ids) == text
        assert theirs.decode(whole["input_ids"][i], skip_special_tokens=True) == text


def test_odd_texts_get_tiktokens_ids_offsets_and_come_back(pair):
    check_same(*pair, ODD)


def test_the_built_in_corpus_gets_tiktokens_ids_offsets_and_comes_back(pair):
    check_same(*pair, sorted({line for scene in toy.documents(words=30_000) for line in scene}))


def corpus_lines(folder: Path, count: int) -> list[str]:
    """Lines from every file of the corpus, as many from each."""
    files = sorted((folder / "corpus").rglob("*.txt"))
    lines = []
    for file in files:
        with open(file, encoding="utf-8", newline="\n") as text:
            filled = (line.removesuffix("\n") for line in text if line.strip())
            lines += [line for _, line in zip(range(-(-count // len(files)) * 2), filled, strict=False)]
    return lines[:: max(1, len(lines) // count)][:count]


def other_pair(folder: Path, pattern: str, tokens: list[bytes]):
    """transformers' and tiktoken's tokenizer of other tokens and another pattern than the run's."""
    return pair_of(folder, data.tokenizer_spec("other", pattern, tokens))


def pair_of(folder: Path, spec: dict):
    """transformers' tokenizer and ours of a tokenizer.json."""
    data.write_sealed(folder / "ours.json", spec)
    ours = data.load_tokenizer(folder / "ours.json")
    config = export.model_config(Config(1, 16, 2, 1, 24, ours.n_vocab), 16, export.pad_id(ours))
    contents = {"tokenizer": export.fast_tokenizer(ours), "tokenizer_config": export.TOKENIZER_CONFIG, "config": config}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(folder), ours


def test_real_lines_get_tiktokens_ids_offsets_and_come_back(shared, tmp_path):
    lines = corpus_lines(shared, 10_000)
    assert len(lines) == 10_000
    spec = data.train_bpe([*lines, *ODD], 8192)  # merges of emoji, digits and white space too
    assert len(spec["tokens"]) == 8191
    pair = other_pair(tmp_path, spec["pattern"], [base64.b64decode(token) for token in spec["tokens"]])
    check_same(*pair, lines + ODD)


def test_the_pattern_of_gpt2_splits_as_in_tiktoken(tmp_path):
    bpe = rustbpe.Tokenizer()
    bpe.train_from_iterator(iter(ODD * 3), 1500, 1024, GPT2_PATTERN.replace("++", "+"))
    ranks = dict((bytes(token), rank) for token, rank in bpe.get_mergeable_ranks())
    pair = other_pair(tmp_path, GPT2_PATTERN, sorted(ranks, key=ranks.get))
    check_same(*pair, [*ODD, "a \n b", "a  \n\n", "  \nx", " " * 500 + "x", "1" * 500])


def test_a_unigram_model_keeps_its_ids_and_decodes_to_normalised_text(tmp_path):
    lines = sorted({line for scene in toy.documents(words=30_000) for line in scene})
    theirs, ours = pair_of(tmp_path, data.train_unigram([*lines, *ODD], 700))
    assert len(theirs) == ours.n_vocab and theirs.bos_token_id == ours.eot_token
    for text in [*lines[:500], *ODD, "<unk> <0x41>", "\u2581 \u2581"]:
        ids = ours.encode_ordinary(text)
        assert theirs(text)["input_ids"] == [ours.eot_token, *ids], repr(text)
        assert theirs.decode(ids) == ours.normalize(text)


def test_end_of_text_begins_each_text_of_a_pair_too(pair):
    theirs, ours = pair
    dogs, cats = ours.encode_ordinary("the dogs"), ours.encode_ordinary("the cats")
    assert theirs("the dogs", "the cats")["input_ids"] == [ours.eot_token, *dogs, ours.eot_token, *cats]


def test_padding_is_on_the_left_masked_and_a_token_that_no_text_contains(pair):
    theirs, ours = pair
    assert {theirs.bos_token_id, theirs.eos_token_id} == {ours.eot_token}
    assert ours.decode_single_token_bytes(theirs.pad_token_id) == b"\xff" and len(theirs) == ours.n_vocab
    assert theirs.pad_token_id not in theirs("\xff \u0178 " + "".join(ODD))["input_ids"]
    texts = ["the dogs", "a"]
    batch = theirs(texts, padding=True)
    lengths = [1 + len(ours.encode_ordinary(text)) for text in texts]
    assert batch["attention_mask"] == [[0] * (lengths[0] - n) + [1] * n for n in lengths]
    assert batch["input_ids"][1][: lengths[0] - lengths[1]] == [theirs.pad_token_id] * (lengths[0] - lengths[1])
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits_and_nothing_that_is_generated(exported, side):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, padding_side=side)
    texts = ["the dogs near the cat run .", "a", "the cat"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = model(**batch).logits
        for i, text in enumerate(texts):
            alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(padded[i][batch["attention_mask"][i] == 1], alone, atol=1e-4, rtol=0)
    if side == "left":
        new = model.generate(**batch, do_sample=False, max_new_tokens=4)[:, batch["input_ids"].shape[1] :]
        alone = model.generate(**tokenizer("a", return_tensors="pt"), do_sample=False, max_new_tokens=4)[0]
        assert tokenizer.decode(new[1], skip_special_tokens=True) == tokenizer.decode(
            alone[2:], skip_special_tokens=True
        )


def test_saved_again_by_transformers_it_is_the_same(exported, tmp_path):
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        auto.from_pretrained(exported).save_pretrained(tmp_path)
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (exported, tmp_path)]
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (exported, tmp_path)]
    assert tokenizers[0](ODD, ODD) == tokenizers[1](ODD, ODD)
    assert tokenizers[1].padding_side == "left" and tokenizers[1].pad_token_id == tokenizers[0].pad_token_id
    x = torch.tensor([tokenizers[1]("the dogs")["input_ids"]])
    assert torch.equal(models[0](x).logits, models[1](x).logits)


@pytest.mark.parametrize("weights", ["last", "average"])
def test_logits_agree_and_generate_goes_on_as_our_model_does(run_folder, tmp_path, weights):
    export_main(run_folder, tmp_path, f"--weights={weights}")
    ours, _, _ = evaluate.load_run(run_folder, torch.device("cpu"), weights)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())  # every weight found, none left over
    assert theirs.dtype == torch.float32
    tokens = torch.randint(ours.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))  # beyond T
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-4, rtol=0)
        expected = tokens[:1, :5]
        for _ in range(8):
            expected = torch.cat((expected, ours(expected)[:, -1:].argmax(-1)), dim=1)
        mask = torch.ones_like(tokens[:1, :5])
        new = theirs.generate(tokens[:1, :5], attention_mask=mask, do_sample=False, max_new_tokens=8)
    assert new[0].tolist() == expected[0, : new.shape[1]].tolist()
    assert new.shape[1] == 13 or new[0, -1] == ours.config.vocab_size - 1


def test_the_model_card_names_flags_sizes_and_scores(run_folder, exported):
    card = (exported / "README.md").read_text()
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "val_loss" in record][-1]
    assert f"| validation loss, nats per token | {last['val_loss']:.3f} | |" in card.replace("|  |", "| |")
    assert f"| minimal pairs, % | {last['toy']:.1f} | mean of 21 paradigms |" in card
    assert "| blimp | 61.2 | 67,000 items, 95 % interval 60.5 to 62.0 |" in card and "62.5" not in card
    assert "| n_embd | 16 |" in card and "those of update 12, after reading " in card
    words = card.split("python train.py ")[1].replace("\\\n", "").split()
    again, saved = vars(flags.get_args(words)), json.loads((run_folder / "config.json").read_text())["flags"]
    assert {name: again[name] for name in saved if name not in export.LOCAL} == {
        name: value for name, value in saved.items() if name not in export.LOCAL
    }


def test_the_model_card_believes_no_score_of_other_weights(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    score(run, "older", "last", 71.5, update=8)
    score(run, "replaced", "last", 72.5, digest="0" * 16)
    (run / "eval-unknown.json").write_text(json.dumps({"scores": [{"name": "blimp", "score": 73.5}]}))
    export_main(run, tmp_path / "last")
    export_main(run, tmp_path / "average", "--weights=average")
    last, mean = ((tmp_path / name / "README.md").read_text() for name in ("last", "average"))
    assert "61.2" in last and not any(value in last for value in ("62.5", "71.5", "72.5", "73.5"))
    assert "the mean of those of updates 8, 12" in mean and "| blimp | 62.5 |" in mean and "61.2" not in mean
    record = json.loads((run / "average.json").read_text())
    assert f"| validation loss, nats per token | {record['val_loss']:.3f} |" in mean


@pytest.fixture
def small_track(text_file, cache, monkeypatch) -> list[str]:
    """The track strict-small with 252 words in the place of a million: flags of a run on a text of 2,512 words."""
    for module in (flags, journal):
        monkeypatch.setattr(module, "MILLION", 252)
    prepared = data.prepare(str(text_file), cache, vocab_size=400, val_share=0, quiet=True)
    return [f"--data={prepared}", "--mode=random", "--save-every=20", "--eval-every=1000", *NANO]


def test_checkpoints_by_words_are_the_same_whether_or_not_the_run_was_stopped(small_track, tmp_path, capsys):
    def train_it(name: str, *more: str) -> Path:
        args = flags.get_args([*small_track, "--checkpoints=babylm", f"--out={tmp_path / name}", *more])
        assert train.main(args) == 0
        return tmp_path / name

    whole = train_it("whole")
    told = capsys.readouterr().out
    assert "BabyLM allows 100 M, 10 M in it" in told and "WARNING" not in told
    stopped = train_it("stopped", "--max-updates=47")
    checkpoint.save(stopped / "weights-51.pt", {"model": {}})  # as if it had gone on after its last checkpoint
    train_it("stopped", "--resume", f"--max-updates={10**6}")
    export_main(whole, tmp_path / "model", "--checkpoints")
    export_main(stopped, "--checkpoints")

    names = [f"chck_{million}M" for million in (*range(1, 10), *range(10, 101, 10))]
    assert {folder.name for folder in (tmp_path / "model").iterdir()} == {*names, "main"}
    meta = checkpoint.read_config(whole)["corpus"]
    per_update = 256 * meta["n_words"] / meta["n_tokens"]
    for name in names:
        files = [folder / name / "model.safetensors" for folder in (tmp_path / "model", stopped / "export")]
        assert files[0].read_bytes() == files[1].read_bytes()
        card = (tmp_path / "model" / name / "README.md").read_text()
        update, words = re.search(r"of update (\d+), after reading ([\d,]+) words", card).groups()
        assert int(words.replace(",", "")) == round(int(update) * per_update)
        wanted = int(name[5:-1]) * 252
        assert wanted <= int(update) * per_update < wanted + per_update or name == names[-1]  # it is the run's end
        assert f", {name}\n" in card and "ignores `revision=`" in card
    last = [(tmp_path / "model" / name / "model.safetensors").read_bytes() for name in (names[-1], "main")]
    assert last[0] == last[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "chck_3M")
    kept = dict(checkpoint.kept_weights(whole))[export.checkpoints(whole, checkpoint.read_config(whole))["chck_3M"]]
    assert torch.equal(model.model.norm.weight, checkpoint.load(kept)["model"]["model.norm.weight"])


def test_more_words_than_the_challenge_allows_are_said(small_track, tmp_path, capsys):
    for epochs, flag, wanted in (
        (
            10,
            "--checkpoints=babylm",
            r"words +9\d\.\d M, 10\.0 M in the text; BabyLM allows 100 M, 10 M in it\n(?! )",
        ),
        (20, "--checkpoints=babylm", r"words +19\d\.\d M,.*\n +WARNING: .*; --epochs=10 would be within it\n"),
        (20, "--keep-weights=words", r"budget.*\n(?!words)"),
    ):
        out = f"--out={tmp_path / flag}-{epochs}"
        args = flags.get_args([*small_track, out, f"--epochs={epochs}", "--max-updates=1", flag])
        assert train.main(args) == 0
        assert re.search(wanted, capsys.readouterr().out)


def test_a_run_that_kept_no_weights_by_words_has_no_checkpoints(run_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        export_main(run_folder, tmp_path / "model", "--checkpoints")
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and "--checkpoints=babylm" in err
    assert not (tmp_path / "model").exists()


def test_the_command_overwrites_an_export_only_when_told_to(run_folder, tmp_path):
    target = tmp_path / "new" / "model"
    export_main(run_folder, target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    again = subprocess.run(
        [sys.executable, "-m", "tools.export", run_folder, target, "--weights=average"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    export_main(run_folder, target, "--weights=average", "--overwrite")
    after = {file.name: file.read_bytes() for file in target.iterdir()}
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]


def cut(name: str):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (shutil.rmtree, "no run there"),
        (lambda run: (run / "config.json").write_text("{}"), "config.json: damaged"),
        (cut("config.json"), "not JSON"),
        (cut("checkpoint.pt"), "checkpoint.pt: damaged"),
        (cut("tokenizer.json"), "tokenizer.json is damaged"),
        (cut("eval-blimp.json"), "eval-blimp.json: damaged"),
    ],
)
def test_a_missing_or_damaged_run_is_one_line(run_folder, tmp_path, capsys, damage, wanted):
    run = shutil.copytree(run_folder, tmp_path / "run")
    damage(run)
    with pytest.raises(SystemExit) as stopped:
        export_main(run, tmp_path / "model")
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and wanted in err
    assert not (tmp_path / "model").exists()


def test_no_run_and_no_file_is_written_over(run_folder, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (run_folder, file):
        with pytest.raises(SystemExit) as stopped:
            export_main(run_folder, target, "--overwrite")
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert file.read_text() == "mine" and not (run_folder / "model.safetensors").exists()


def test_a_token_that_no_merges_make_is_refused():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"abc": 257, b"xyz": 258}
    assert export.halves(b"abc", ranks) == [b"a", b"bc"]
    with pytest.raises(data.DataError, match="xyz"):
        export.halves(b"xyz", ranks)
