"""Corpora to prepared folders: boundaries, validation, tokenizer, cache, damage, downloads."""

import base64
import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import flags
import machine
import tasks
import toy
import train
from data import DataError, open_prepared, prepare, split_label

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "corpus"
WORDS = "the dog cat sees a big red ball and runs home to sleep while birds sing".split()


def story(seed, n_docs=40, n_lines=5):
    rng = random.Random(seed)
    docs = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + "." for _ in range(n_lines)] for _ in range(n_docs)]
    return "\n\n".join("\n".join(doc) for doc in docs) + "\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prepared(tmp_path, content, **flags):
    path = write(tmp_path / "text.txt", content)
    return open_prepared(prepare(str(path), tmp_path / "cache", **{"propose": 300, "quiet": True} | flags))


def texts(corpus):
    """The lines that the tokens stand for."""
    encoding = data.load_tokenizer(corpus.folder / "tokenizer.json")
    ids, ends = corpus.tokens, corpus.line_start[1:] - 1
    assert (ids[ends] == corpus.eot).all() and (ids == corpus.eot).sum() == len(ends)
    return [
        encoding.decode_bytes(ids[a:b].tolist()).decode() for a, b in zip(corpus.line_start[:-1], ends, strict=True)
    ]


def documents(corpus):
    lines = texts(corpus)
    return [tuple(lines[a:b]) for a, b in zip(corpus.doc_start[:-1], corpus.doc_start[1:], strict=True)]


def refused(*args, **flags):
    """The message of the DataError that prepare raises: always one line."""
    with pytest.raises(DataError) as error:
        prepare(*args, **{"quiet": True} | flags)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ lines and documents

ODD = [
    "a byte-order mark \ufeff inside",
    "in\rside\x85next\u2028line\u2029paragraph\x0b\x0c\x1c",
    "nul \x00 byte",
    "tabs\t\tand   spaces   \t ",
    "family 👨‍👩‍👧‍👦 flag 🇫🇷",
    "שלום עולם مرحبا",
    "<|endoftext|> is text here",
    "*MOT:\t  indented",
    "*MOT:\t",
    "e\u0301 and é, ﬁ, Ⅷ, 12345678901",
    "no newline at the end",
]


def test_odd_text_passes_unchanged_and_is_split_at_line_ends_alone(tmp_path):
    corpus = prepared(tmp_path, "\n".join(ODD))
    assert texts(corpus) == ODD
    assert corpus.doc_start.tolist() == [0, len(ODD)]


def test_line_ends_and_byte_order_marks_of_other_systems_are_no_text(tmp_path):
    write(tmp_path / "in/a.txt", b"\xef\xbb\xbf*MOT:\tlook\r\nthere\r\n \t\r\n\xe3\x80\x80\nend\r\n")
    write(tmp_path / "in/b.txt", b"\xef\xbb\xbfnext\n")
    corpus = open_prepared(prepare(str(tmp_path / "in"), tmp_path / "cache", propose=257, quiet=True))
    assert documents(corpus) == [("*MOT:\tlook", "there"), ("end",), ("next",)]
    assert (corpus.line_label > 0).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "line, sentences",
    [
        ("One. Two!  \u201cNo?\u201d (Four.) 5 is. one", ["One.", "Two!", "\u201cNo?\u201d", "(Four.)", "5 is. one"]),
        ("Mr. Fox met Dr. J. Owl. Fine\u2026 So", ["Mr. Fox met Dr. J. Owl.", "Fine\u2026", "So"]),
        ("*MOT:\tlook . a dog .", ["*MOT:\tlook . a dog ."]),
        ("3.14 e.g. this. \u00c9t\u00e9.", ["3.14 e.g. this.", "\u00c9t\u00e9."]),
    ],
)  # fmt: skip
def test_sentences_are_lines_where_that_is_wanted(tmp_path, line, sentences):
    assert documents(prepared(tmp_path, f"a\n\n{line}\r\nb\n", split="sentences")) == [("a",), (*sentences, "b")]


def test_a_split_that_changes_nothing_gives_the_same_text_and_a_prepared_folder_keeps_its_lines(tmp_path):
    plain = prepared(tmp_path, story(1))
    assert prepared(tmp_path, story(1), split="sentences").meta["content"] == plain.meta["content"]
    assert "was prepared with its own lines" in refused(str(plain.folder), tmp_path / "cache", split="sentences")
    assert "--split=words" in refused("toy", tmp_path / "cache", split="words")


def test_empty_lines_and_file_ends_end_documents(tmp_path):
    write(tmp_path / "in/b.train", "three\n\n\n\nfour")
    write(tmp_path / "in/a/z.txt", "\n\none\r\n\r\ntwo\r\n")
    write(tmp_path / "in/c.txt.gz", gzip.compress(b"five\n"))
    write(tmp_path / "in/d.md", "not a corpus file")
    folder = prepare(str(tmp_path / "in"), tmp_path / "cache", propose=257, quiet=True)
    assert documents(open_prepared(folder)) == [("one",), ("two",), ("three",), ("four",), ("five",)]


def test_lines_have_stages_only_where_all_text_is_in_folders_of_stages(tmp_path):
    write(tmp_path / "in/2-medium/a.txt", "three\n\n\r\nfour\n")
    write(tmp_path / "in/1-short/b.txt.gz", gzip.compress(b"\none\ntwo"))
    write(tmp_path / "in/10-long/deep/c.train", "five")
    flags = dict(cache=tmp_path / "cache", propose=257, quiet=True)
    corpus = open_prepared(prepare(str(tmp_path / "in"), **flags))
    assert texts(corpus) == ["one", "two", "five", "three", "four"]
    assert corpus.line_stage.tolist() == [1, 1, 10, 2, 2] and corpus.line_stage.dtype == "uint8"
    shutil.move(tmp_path / "in/2-medium", tmp_path / "in/3-medium")  # the same text in the same order, another stage
    assert open_prepared(prepare(str(tmp_path / "in"), **flags)).line_stage.tolist() == [1, 1, 10, 3, 3]
    shutil.move(tmp_path / "in/3-medium/a.txt", tmp_path / "in/3-a.txt")
    corpus = open_prepared(prepare(str(tmp_path / "in"), **flags))
    assert corpus.line_stage is None and "line_stage" not in np.load(corpus.folder / "index.npz").files
    assert texts(corpus) == ["one", "two", "five", "three", "four"]


def test_links_to_folders_are_followed_once_and_what_was_left_out_is_counted(tmp_path, capsys, monkeypatch):
    write(tmp_path / "in/a.txt", "one\n\ntwo\n")
    write(tmp_path / "elsewhere/b.txt", "three\n")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/link/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nowhere")
    for name in ("empty.txt", "notes.md", "rows.jsonl"):
        write(tmp_path / "in" / name, "" if name == "empty.txt" else "{}")
    monkeypatch.setattr(sys, "argv", ["data.py", f"--data={tmp_path / 'in'}", f"--cache={tmp_path / 'cache'}"])
    data.main()
    folder, summary, *_ = capsys.readouterr().out.splitlines()
    assert texts(open_prepared(Path(folder))) == ["one", "two", "three"]
    read, left_out = summary.split("; left out: ")
    assert read.startswith("2 files, 3 words in 3 documents, ") and read.endswith(" % of the tokens held out")
    assert sorted(left_out.split(", ")) == ["1 empty", "1 folders met before", "1 unreadable", "2 with another ending"]


def test_data_and_train_propose_the_same_vocabulary(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "text.txt", " ".join(f"{i * 7919 % 100003:x}" for i in range(9000)))
    monkeypatch.setattr(sys, "argv", ["data.py", f"--data={path}", f"--cache={tmp_path}"])
    monkeypatch.setattr(machine, "pick_device", lambda name="auto": torch.device(name.replace("auto", "cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a small text is one on a GPU, too
    data.main()
    state = train.start(
        flags.get_args(["--device=cpu", f"--data={path}", f"--cache={tmp_path}", f"--out={tmp_path / 'x'}"])
    )
    assert str(state.corpus.folder) == capsys.readouterr().out.splitlines()[0] and state.corpus.vocab_size == 2048


def test_dtypes_and_counts(tmp_path):
    text = story(1)
    corpus = prepared(tmp_path, text)
    dtypes = dict(tokens="uint16", line_start="int64", line_label="uint8", line_seen="bool", doc_start="int64")
    for name, dtype in (dtypes | {"doc_val": "bool"}).items():
        assert getattr(corpus, name).dtype == dtype
    lines = [line for line in text.split("\n") if line]
    meta = corpus.meta
    assert (meta["n_lines"], meta["n_docs"], meta["n_words"]) == (len(lines), 40, sum(len(x.split()) for x in lines))
    assert meta["n_tokens"] == len(corpus.tokens) == corpus.line_start[-1]
    assert corpus.eot == corpus.vocab_size - 1 and meta["n_val_docs"] == corpus.doc_val.sum()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=12))
def test_any_text_comes_back(tmp_path_factory, lines):
    text = "\n".join(["first", *lines])
    corpus = prepared(tmp_path_factory.mktemp("any"), text, propose=257)
    ends = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    assert texts(corpus) == ends


# ------------------------------------------------------------------------------------------------ validation


def test_no_validation_document_in_training_and_equal_documents_on_one_side(tmp_path):
    text = story(2, n_docs=60, n_lines=2)
    corpus = prepared(tmp_path, text + "\n" + story(3, n_docs=20) + "\n" + text, val_share=0.3)
    docs = documents(corpus)
    val = {doc for doc, held in zip(docs, corpus.doc_val, strict=True) if held}
    train = {doc for doc, held in zip(docs, corpus.doc_val, strict=True) if not held}
    assert val and train and not val & train
    assert corpus.doc_val.tolist()[:60] == corpus.doc_val.tolist()[-60:]
    both = np.concatenate([corpus.train_lines(), corpus.val_lines()])
    assert both.dtype == np.int64 and sorted(both) == list(range(len(corpus.line_label)))
    assert sum(len(doc) for doc, held in zip(docs, corpus.doc_val, strict=True) if held) == len(corpus.val_lines())


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_two_documents_are_always_one_for_each_side(tmp_path, share):
    corpus = prepared(tmp_path, "one\n\ntwo\n\none\n", val_share=share)
    assert 0 < corpus.doc_val.sum() < 3 and corpus.doc_val[0] == corpus.doc_val[2]


def test_one_distinct_document_gives_no_validation_and_says_so(tmp_path, capsys):
    assert not prepared(tmp_path, "one\n\none\n", val_share=0.9, quiet=False).doc_val.any()
    assert "nothing is held out" in capsys.readouterr().err.splitlines()[-1]


def test_share_is_about_what_was_asked(tmp_path):
    assert 120 < prepared(tmp_path, story(4, n_docs=800, n_lines=2), val_share=0.2).doc_val.sum() < 200


def held_out_share(corpus):
    return np.diff(corpus.line_start)[corpus.val_lines()].sum() / len(corpus.tokens)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lengths", [[4000, 60], [900, 900, 30, 20, 10], [1] * 200 + [5000]])
def test_the_share_held_out_is_of_tokens(tmp_path, lengths, seed):
    docs = ["\n".join(f"{seed} {n} {i}" for i in range(length)) for n, length in enumerate(lengths)]
    corpus = prepared(tmp_path, "\n\n".join(docs), propose=257)
    assert 0 < held_out_share(corpus) <= 0.1


def test_where_nothing_fits_the_smallest_document_is_held_out():
    hashes, sizes = np.array([3, 1, 3, 2], np.uint64), np.array([30, 80, 30, 50])
    assert data.choose_validation(hashes, sizes, 0.05).tolist() == [False, False, False, True]
    assert data.choose_validation(hashes, sizes, 0.5).tolist() == [False, True, False, False]


def test_line_seen_marks_validation_lines_that_stand_in_training_whoever_says_them(tmp_path):
    rng = random.Random(5)
    doc = lambda: "\n".join(f"*{rng.choice(['MOT', 'CHI'])}:\t{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in "ab")  # noqa: E731
    corpus = prepared(tmp_path, "\n\n".join(doc() for _ in range(90)), val_share=0.3)
    lines = [split_label(line)[1] for line in texts(corpus)]
    train = {lines[i] for i in corpus.train_lines()}
    wanted = [i for i in corpus.val_lines() if lines[i] in train]
    assert np.flatnonzero(corpus.line_seen).tolist() == wanted
    assert 0 < len(wanted) < len(corpus.val_lines())


# ------------------------------------------------------------------------------------------------ speaker labels


@pytest.mark.parametrize(
    "line, label",
    [
        ("*MOT:\tlook!", "*MOT:\t"),
        ("A:\tyes", "A:\t"),
        ("Mrs. O'Neil-2:\t hm", "Mrs. O'Neil-2:\t"),
        ("*MOT:\t", "*MOT:\t"),
        ("A: yes", ""),
        (":\tyes", ""),
        ("a, b:\tyes", ""),
        ("x" * 33 + ":\tyes", ""),
        ("", ""),
    ],
)
def test_split_label(line, label):
    assert split_label(line) == (label, line[len(label) :])


def check_labels(corpus):
    encoding = data.load_tokenizer(corpus.folder / "tokenizer.json")
    for line, start, end, n in zip(
        texts(corpus), corpus.line_start[:-1], corpus.line_start[1:], corpus.line_label, strict=True
    ):
        label, rest = split_label(line)
        ids = corpus.tokens[start : end - 1].tolist()
        assert encoding.decode(ids[:n]) == label and encoding.decode(ids[n:]) == rest
        assert ids == encoding.encode_ordinary(line)


def test_label_ends_at_a_token_boundary_of_the_whole_line(tmp_path):
    check_labels(prepared(tmp_path, "\n".join(ODD + [f"*CHI:\t{x}" for x in ODD] + [f"Dr. X:\t\t{x}" for x in ODD])))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/corpus beside this repository")
def test_labels_of_real_child_speech(tmp_path):
    text = b"".join(p.read_bytes()[:30000] for p in sorted((SHARED / "childes").glob("*.txt")))
    corpus = prepared(tmp_path, text, propose=4096, encoding_errors="replace")
    assert (corpus.line_label > 0).mean() > 0.9
    check_labels(corpus)


# ------------------------------------------------------------------------------------------------ tokenizer


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    return data.load_tokenizer(prepared(tmp_path_factory.mktemp("bpe"), story(6)).folder / "tokenizer.json")


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_encode_decode_gives_back_any_text(encoding, text):
    text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
    assert encoding.decode(encoding.encode_ordinary(text)) == text


@pytest.mark.parametrize("text", ["x" + " " * 10**6, " " * 10**6 + "x", "a" * 10**7, "acgt" * 250_000, "=" * 10**6])
def test_endless_runs_are_trained_on_and_encoded_in_reasonable_time(tmp_path, text):
    start = time.monotonic()
    assert texts(prepared(tmp_path, text)) == [text]
    assert time.monotonic() - start < 20


def test_the_same_text_gives_the_same_tokenizer_in_another_process(tmp_path):
    path = write(tmp_path / "text.txt", story(7))
    files = []
    for cache in ("a", "b"):
        command = [
            sys.executable,
            ROOT / "data.py",
            f"--data={path}",
            f"--cache={tmp_path / cache}",
            "--vocab-size=290",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[0])
        files.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert files[0] == files[1]


def test_vocabulary_counts_end_of_text_and_stops_at_what_the_text_gives(tmp_path, capsys):
    assert prepared(tmp_path, story(8), vocab_size=280).vocab_size == 280
    corpus = prepared(tmp_path, "ab ab\n", propose=1000, quiet=False)
    assert "1000 proposed" in capsys.readouterr().err
    message = refused(str(tmp_path / "text.txt"), tmp_path / "cache", vocab_size=1001)
    assert "--vocab-size=1001" in message and message.endswith(f"the largest is {corpus.vocab_size}")
    # The same from the folder that was made from a proposal of this size.
    assert "--vocab-size=1000 is more" in refused(str(tmp_path / "text.txt"), tmp_path / "cache", vocab_size=1000)


def test_gpt2_is_written_out_whole_and_needs_tiktokens_files_no_more(tmp_path, monkeypatch):
    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    gpt2 = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={data.EOT: 258})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: gpt2)
    lines = ["the", "*MOT:\t  the end", " " * 10**6 + "x"]
    corpus = prepared(tmp_path, "\n".join(lines), tokenizer="gpt2")
    assert texts(corpus) == lines and corpus.vocab_size == 259
    assert corpus.tokens[:2].tolist() == [257, 258]


def test_gpt2_without_a_network_is_one_line(tmp_path, monkeypatch):
    def get_encoding(name):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    path = write(tmp_path / "text.txt", "a b\n")
    assert "--tokenizer=bpe needs none" in refused(str(path), tmp_path / "cache", tokenizer="gpt2")
    assert not list((tmp_path / "cache").iterdir())


# ------------------------------------------------------------------------------------------------ Unigram


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    pytest.importorskip("tokenizers")
    corpus = prepared(tmp_path_factory.mktemp("unigram"), story(6), tokenizer="unigram", propose=400)
    return data.load_tokenizer(corpus.folder / "tokenizer.json")


def check_unigram(unigram, text):
    ids = unigram.encode_ordinary(text)
    assert unigram.decode(ids) == unigram.normalize(text), repr(text)
    assert 0 not in ids and unigram.eot_token not in ids  # neither <unk> nor end-of-text, whatever the text
    return ids


MARKS = [
    "<unk>",
    "<UNK>",
    "<0x0A>",
    "<0x41><0xFF>",
    data.EOT,
    "\u2581",
    "\u2581a \u2581",
    "\x00",
    "\n",
    "\x00\n a",
    "\ufffd",
]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*MARKS, *WORDS, *ODD, " "])).map("".join))
def test_unigram_encodes_any_text_and_decodes_it_normalised(unigram, text):
    check_unigram(unigram, text.encode("utf-8", "replace").decode())


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_unigram_tokens_count_when_they_overlap_the_completion_normalised(unigram, prefix, text):
    ids, first = tasks.Encoder(unigram)(prefix, text)
    before, whole = unigram.normalize(prefix), unigram.normalize(prefix + text)
    shared = next(before[:n] for n in range(len(before), -1, -1) if whole.startswith(before[:n]))
    ends = [0, *itertools.accumulate(len(unigram.decode_single_token_bytes(i)) for i in ids)]
    assert ends[-1] == len(whole.encode())
    assert ends[first] <= len(shared.encode())
    assert first == len(ids) or ends[first + 1] > len(shared.encode())


@pytest.mark.parametrize(("prefix", "text", "counted"), [("a", "\u0301", "\u00e1"), ("a \u1100", "\u1161", "\uac00")])
def test_a_character_that_a_completion_changes_counts(unigram, prefix, text, counted):
    ids, first = tasks.Encoder(unigram)(prefix, text)
    assert unigram.decode(ids[first:]).strip() == counted


def test_unigram_normalises_as_nfkc_does(unigram):
    for text in ["ﬁ Ⅷ ² e\u0301 … ½", "\u1100\u1161\u3000x", "\ufdfa"]:
        assert unigram.normalize(text) == unicodedata.normalize("NFKC", text)


def test_unigram_corpus_comes_back_normalised_with_its_labels(tmp_path):
    pytest.importorskip("tokenizers")
    odd = [*ODD, *(f"*CHI:\t{line}" for line in ODD), "\ufdfa" * 20 + ":\thello", *MARKS[:8]]
    corpus = prepared(tmp_path, "\n".join(odd), tokenizer="unigram", vocab_size=300)
    unigram = data.load_tokenizer(corpus.folder / "tokenizer.json")
    assert corpus.vocab_size == unigram.n_vocab == 300 and corpus.eot == unigram.eot_token == 299
    bounds = zip(odd, corpus.line_start[:-1], corpus.line_start[1:] - 1, corpus.line_label, strict=True)
    for line, start, end, n in bounds:
        ids, (label, rest) = corpus.tokens[start:end].tolist(), split_label(line)
        assert ids == check_unigram(unigram, line) and corpus.tokens[end] == corpus.eot
        if n < 255:
            assert (unigram.decode(ids[:n]), unigram.decode(ids[n:])) == (*map(unigram.normalize, (label, rest)),)


def test_rare_characters_are_bytes_and_frequent_words_are_pieces(tmp_path):
    pytest.importorskip("tokenizers")
    corpus = prepared(tmp_path, story(6, n_docs=100) + "\u2603\n", tokenizer="unigram", propose=400)
    unigram = data.load_tokenizer(corpus.folder / "tokenizer.json")
    assert [unigram.decode_single_token_bytes(i) for i in unigram.encode_ordinary("\u2603")] == [
        b"\xe2",
        b"\x98",
        b"\x83",
    ]
    assert [unigram.decode([i]) for i in unigram.encode_ordinary("the birds sing")] == ["the", " birds", " sing"]


@pytest.mark.parametrize("text", ["a", " .", "\x00", " " * 10**5 + "-", "acgt" * 50_000, "ab ab", "\U0001f600\t"])
@pytest.mark.parametrize("size", [260, 300])
def test_unigram_is_trained_on_any_text(tmp_path, text, size):
    pytest.importorskip("tokenizers")
    corpus = prepared(tmp_path, text, tokenizer="unigram", propose=size)
    unigram = data.load_tokenizer(corpus.folder / "tokenizer.json")
    assert unigram.decode(corpus.tokens[:-1].tolist()) == text and corpus.vocab_size <= size


def test_the_same_text_gives_the_same_unigram_model():
    pytest.importorskip("tokenizers")
    lines = [line for scene in toy.documents(words=20_000) for line in scene]
    assert len({data.train_unigram(iter(lines), size)["json"] for size in (400, 400, 400)}) == 1


def test_a_missing_tokenizers_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    path = write(tmp_path / "text.txt", "a b\n")
    assert "pip install tokenizers" in refused(str(path), tmp_path / "cache", tokenizer="unigram")
    assert not list((tmp_path / "cache").iterdir())


# ------------------------------------------------------------------------------------------------ toy


def test_toy_corpus_and_its_pairs(tmp_path):
    corpus = open_prepared(prepare("toy", tmp_path, quiet=True))
    encoding = data.load_tokenizer(corpus.folder / "tokenizer.json")
    pairs = toy.minimal_pairs()
    assert list(corpus.pairs) == list(pairs)
    for uid in pairs:
        wanted = [[pair["sentence_good"], pair["sentence_bad"]] for pair in pairs[uid]]
        assert [[encoding.decode(ids) for ids in pair] for pair in corpus.pairs[uid]] == wanted
    assert documents(corpus) == [tuple(scene) for scene in toy.documents()]


def test_a_changed_toy_is_prepared_again(tmp_path, monkeypatch):
    folders = []
    for word in ("dog", "cat"):
        code = f"documents = lambda seed=0: [['{word}'], ['a {word}']]\nminimal_pairs = lambda: {{}}\n"
        write(tmp_path / word / "toy.py", code)
        monkeypatch.syspath_prepend(tmp_path / word)
        monkeypatch.delitem(sys.modules, "toy", raising=False)
        folders.append(prepare("toy", tmp_path / "cache", quiet=True))
    assert [texts(open_prepared(folder)) for folder in folders] == [["dog", "a dog"], ["cat", "a cat"]]
    monkeypatch.delitem(sys.modules, "toy")


# ------------------------------------------------------------------------------------------------ cache


def test_cache_is_reused_until_text_or_settings_change(tmp_path):
    path = write(tmp_path / "my text.txt", story(9))
    make = lambda **flags: prepare(str(path), tmp_path / "cache", **{"propose": 300, "quiet": True} | flags)  # noqa: E731
    first = make()
    assert first.parent == tmp_path / "cache" and first.name.startswith("my-text.txt-")
    stamp = (first / "meta.json").stat().st_mtime_ns
    assert make() == make(vocab_size=300) == first and (first / "meta.json").stat().st_mtime_ns == stamp
    others = [make(propose=299), make(val_share=0.1), make(encoding_errors="replace")]
    path.write_text(story(10))
    assert len({first, *others, make()}) == 5
    assert prepare(str(first), tmp_path / "cache") == first
    assert "--vocab-size" in refused(str(first), tmp_path / "cache", vocab_size=400)


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = write(tmp_path / "text.txt", story(11))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "choose_validation", interrupt)  # the tokens are written by then
        prepare(str(path), tmp_path / "cache", propose=300, quiet=True)
    assert not list((tmp_path / "cache").iterdir())
    assert open_prepared(prepare(str(path), tmp_path / "cache", propose=300, quiet=True))


@pytest.mark.parametrize("folder", ["text", "text/1-short"])
def test_a_text_that_changes_while_it_is_prepared_is_not_cached(tmp_path, monkeypatch, folder):
    path = write(tmp_path / folder / "a.txt", story(11))

    def train_bpe(lines, size):
        path.write_text(story(11) + "one line more\n")
        return {
            "name": "bpe",
            "pattern": data.PATTERN,
            "tokens": [base64.b64encode(bytes([b])).decode() for b in range(256)],
        }

    with monkeypatch.context() as patch:
        patch.setattr(data, "train_bpe", train_bpe)
        assert "changed while" in refused(str(tmp_path / "text"), tmp_path / "cache", propose=257)
    assert not list((tmp_path / "cache").iterdir())
    assert "one line more" in texts(open_prepared(prepare(str(tmp_path / "text"), tmp_path / "cache", propose=257)))


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "text.txt", story(12))
    ordinary = data.choose_validation
    winner = []

    def slow(*args):
        if not winner:
            winner.append(None)
            winner[0] = prepare(str(path), tmp_path / "cache", propose=300, quiet=True)
            winner.append((winner[0] / "meta.json").stat().st_mtime_ns)
        return ordinary(*args)

    monkeypatch.setattr(data, "choose_validation", slow)
    folder = prepare(str(path), tmp_path / "cache", propose=300, quiet=True)
    assert folder == winner[0] and (folder / "meta.json").stat().st_mtime_ns == winner[1]
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    corpus = prepared(tmp_path, story(13, n_docs=4))
    rng = random.Random(13)
    for path in sorted(corpus.folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(25):
            at = rng.randrange(len(whole))
            flipped = whole[:at] + bytes([whole[at] ^ rng.randint(1, 255)]) + whole[at + 1 :]
            for damaged in (flipped, whole[:at], whole + b"\n"):
                path.write_bytes(damaged)
                with pytest.raises(DataError, match=path.name) as error:
                    open_prepared(corpus.folder)
                assert "\n" not in str(error.value)
                if path.name == "tokenizer.json":
                    pytest.raises(DataError, data.load_tokenizer, path)
        path.unlink()
        pytest.raises(DataError, open_prepared, corpus.folder).match(f"{path.name} is missing")
        path.write_bytes(whole)
    assert open_prepared(corpus.folder).meta == corpus.meta


def test_another_format_version_is_named(tmp_path, monkeypatch):
    folder = prepared(tmp_path, story(14, n_docs=3)).folder
    monkeypatch.setattr(data, "FORMAT", data.FORMAT + 1)
    pytest.raises(DataError, open_prepared, folder).match("format")
    assert prepare(str(tmp_path / "text.txt"), tmp_path / "cache", propose=300, quiet=True) != folder


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    tokens = [base64.b64encode(bytes([b])).decode() for b in range(256)]
    good = {"name": "x", "pattern": ".", "tokens": tokens}
    unigram = {"name": "unigram"}
    for bad in (
        {},
        unigram,
        unigram | {"json": "{"},
        good | {"tokens": tokens[1:]},
        good | {"tokens": [*tokens, tokens[0]]},
        good | {"pattern": "("},
    ):
        data.write_sealed(tmp_path / "tokenizer.json", bad)
        pytest.raises(DataError, data.load_tokenizer, tmp_path / "tokenizer.json").match("tokenizer.json")


# ------------------------------------------------------------------------------------------------ wrong use


def test_wrong_corpora_are_named_in_one_line(tmp_path):
    assert "takes toy, babylm-10m" in refused("toi", tmp_path)
    assert "takes toy, babylm-10m" in refused("", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "*.txt" in refused(str(tmp_path / "empty"), tmp_path / "cache")
    assert "no line" in refused(str(write(tmp_path / "a.txt", "\n\r\n\n")), tmp_path / "cache")
    text = "ok\nstill ok\nñ".encode() + b"\xff\n"
    path = write(tmp_path / "b.txt", text)
    message = refused(str(path), tmp_path / "cache")
    assert f"{path} is not UTF-8 at byte 2 (counted from 0) of line 3" in message
    assert "python data.py --encoding-errors=replace" in message
    assert "\ufffd" in texts(open_prepared(prepare(str(path), tmp_path / "cache", encoding_errors="replace")))[-1]
    packed = gzip.compress(story(15).encode())
    for name in ("d.jsonl", "e.JSON"):
        assert "is no text" in refused(str(write(tmp_path / name, '{"text": "a"}\n')), tmp_path / "cache")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is no text" in refused(str(tmp_path / "pipe.txt"), tmp_path / "cache")
    for damaged in (packed[:-20], packed[:40] + b"?" + packed[41:], b"not gzip"):
        assert "c.txt.gz" in refused(str(write(tmp_path / "c.txt.gz", damaged)), tmp_path / "cache")


def test_a_line_and_what_a_gz_unpacks_to_are_bounded(tmp_path, monkeypatch):
    bomb = write(tmp_path / "bomb.txt.gz", gzip.compress(b"a" * (data.MAX_LINE + 10)))
    assert "too large at line 1" in refused(str(bomb), tmp_path / "cache")
    monkeypatch.setattr(data, "MAX_UNPACKED", 10_000)
    many = write(tmp_path / "many.txt.gz", gzip.compress(b"a line\n" * 2000))
    assert f"{many} is too large at line 1429" in refused(str(many), tmp_path / "cache")
    assert texts(prepared(tmp_path, "a line\n" * 2000)) == ["a line"] * 2000  # plain text may be long


def test_names_of_files_reach_the_terminal_without_control_characters(tmp_path):
    path = write(tmp_path / "a\x1b[31m\nb\u202e.txt", b"\xff\n")
    message = refused(str(path), tmp_path / "cache")
    assert message.isprintable() and r"a\x1b[31m\nb\u202e.txt" in message


@pytest.mark.parametrize(
    "flag, flags",
    [
        ("--vocab-size", {"vocab_size": 256}),
        ("--vocab-size", {"vocab_size": 65537}),
        ("--vocab-size", {"vocab_size": 300, "tokenizer": "gpt2"}),
        ("--tokenizer", {"tokenizer": "word"}),
        ("--val-share", {"val_share": 1.0}),
        ("--val-share", {"val_share": float("nan")}),
        ("--encoding-errors", {"encoding_errors": "ignore"}),
    ],
)
def test_wrong_settings_name_their_flag(tmp_path, flag, flags):
    assert refused("toy", tmp_path / "cache", **flags).startswith(flag)
    assert not (tmp_path / "cache").exists()


def test_command_line_is_one_line_and_status_2(tmp_path):
    (tmp_path / "data").mkdir()  # a folder of the same name must not hide data.py
    for name in ("data.py", "machine.py", "model.py", "terminal.py"):
        shutil.copy(ROOT / name, tmp_path)
    run = lambda *args: subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True)  # noqa: E731
    for wrong in (["--data=nope"], ["--vocab-size=x"], ["--val-share=2"], ["--unknown"]):
        done = run("data.py", *wrong)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    write(tmp_path / "file", "")
    write(tmp_path / "text.txt", story(16))
    done = run("data.py", "--data=text.txt", "--cache=file")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--vocab-size" in run("data.py", "--help").stdout
    assert run("-c", "import sys, data; data.DataError; assert 'torch' not in sys.modules").returncode == 0


# ------------------------------------------------------------------------------------------------ downloads


def archive(members):
    """A zip from (name, content, mode) triples."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name, content, mode in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    return packed.getvalue()


REG = stat.S_IFREG | 0o644
GOOD = archive(
    [
        ("train_10M/childes.train", "*MOT:\tlook .\n\n", REG),
        ("train_10M/bnc.train", "yes .\n", REG),
        ("train_10M/README.md", "#", REG),
        ("__MACOSX/train_10M/._bnc.train", b"\xff\x00", REG),
    ]
)


@pytest.fixture
def server(monkeypatch):
    """A local server for babylm-10m; a test sets what it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = self.server.answer
            answer["requests"] = answer.get("requests", 0) + 1
            self.send_response(answer.get("status", 200))
            if answer.get("length", True):
                self.send_header("Content-Length", str(answer.get("announce", len(answer["body"]))))
            self.end_headers()
            self.wfile.write(answer["body"])
            time.sleep(answer.get("wait", 0))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as local:
        threading.Thread(target=local.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{local.server_port}/download/"

        def answer(body, md5=None, **how):
            local.answer = {"body": body, **how}
            monkeypatch.setitem(data.DOWNLOADS, "babylm-10m", (url, "train_10M.zip", md5))
            return local.answer

        monkeypatch.setenv("no_proxy", "127.0.0.1")
        answer.url = url
        yield answer
        local.shutdown()


def test_a_download_is_unpacked_prepared_and_not_fetched_again(tmp_path, server):
    answer = server(GOOD, hashlib.md5(GOOD).hexdigest())
    folder = prepare("babylm-10m", tmp_path, propose=257, quiet=True)
    assert folder.name.startswith("babylm-10m-")
    assert texts(open_prepared(folder)) == ["yes .", "*MOT:\tlook ."]
    assert sorted(p.name for p in (tmp_path / "download/babylm-10m").iterdir()) == ["bnc.train", "childes.train"]
    assert prepare("babylm-10m", tmp_path, propose=257, quiet=True) == folder and answer["requests"] == 1


def test_what_was_fetched_by_hand_is_used(tmp_path, server):
    answer = server(b"", status=404)
    write(tmp_path / "a/download/train_10M.zip", GOOD)
    write(tmp_path / "b/download/babylm-10m/train_10M/bnc.train", "yes .\n")
    for cache in ("a", "b"):
        assert prepare("babylm-10m", tmp_path / cache, propose=257, quiet=True)
    assert "requests" not in answer


def test_a_zip_that_is_not_the_published_one_is_downloaded_again(tmp_path, server):
    server(GOOD, hashlib.md5(GOOD).hexdigest())
    write(tmp_path / "download/train_10M.zip", GOOD[:-30])
    assert texts(open_prepared(prepare("babylm-10m", tmp_path, propose=257, quiet=True))) == ["yes .", "*MOT:\tlook ."]


def test_without_pooch_only_a_download_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert refused("babylm-10m", tmp_path).endswith("pip install pooch")
    write(tmp_path / "download/babylm-10m/bnc.train", "yes .\n")
    assert prepare("babylm-10m", tmp_path, propose=257, quiet=True)


PAGE = b"<html>Please come back later</html>"
MD5 = hashlib.md5(GOOD).hexdigest()


@pytest.mark.parametrize(
    "how, why, left",
    [
        (dict(body=b"gone", status=404), "404", False),
        (dict(body=GOOD[:100], announce=len(GOOD)), "100 bytes read", False),
        (dict(body=GOOD[:100], announce=len(GOOD), wait=3), "timed out", False),
        (dict(body=GOOD, announce=len(GOOD) - 30, md5=MD5), "does not match the known hash", False),
        (dict(body=GOOD[:-30], length=False, md5=MD5), "does not match the known hash", False),
        (dict(body=PAGE, md5=MD5), "does not match the known hash", False),
        (dict(body=GOOD[:-30], length=False), "no whole zip", True),
        (dict(body=PAGE), "no whole zip", True),
    ],
)
def test_a_failed_download_says_what_to_fetch_by_hand(tmp_path, server, monkeypatch, how, why, left):
    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.5)
    server(**how)
    message = refused("babylm-10m", tmp_path)
    zip_file = tmp_path / "download/train_10M.zip"
    assert why in message
    for hint in (server.url, "https://osf.io/ad7qg", str(zip_file), how.get("md5", "")):
        assert hint in message
    assert list((tmp_path / "download").iterdir()) == ([zip_file] if left else [])


def test_no_server_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DOWNLOADS, "babylm-10m", ("http://127.0.0.1:9/", "train_10M.zip", None))
    assert "by hand" in refused("babylm-10m", tmp_path)


@pytest.mark.parametrize(
    "members, why",
    [
        ([("a/one.train", "x", REG), ("b/ONE.train", "y", REG)], "two files"),
        ([("a/README.md", "x", REG)], "no *.train"),
        ([("a/bomb.train", "x" * 5000, REG)], "more than 1000 bytes"),
        ([("a/half.train", "x" * 500, REG), ("a/bomb.train", "x" * 501, REG)], "more than 1000 bytes"),
    ],
)
def test_an_evil_archive_is_refused_and_writes_nothing(tmp_path, server, monkeypatch, members, why):
    monkeypatch.setattr(data, "MAX_UNPACKED", 1000)
    server(archive(members))
    assert why in refused("babylm-10m", tmp_path / "cache")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "cache",
        "cache/download",
        "cache/download/train_10M.zip",
    ]


@pytest.mark.parametrize(
    "name", ["../x.train", "a/../../x.train", "..\\x.train", "/tmp/x.train", "C:\\x.train", "a/x.train"]
)
def test_whatever_an_archive_says_it_writes_into_its_folder_alone(tmp_path, server, name):
    mode = stat.S_IFLNK | 0o777 if name == "a/x.train" else REG  # a link becomes a file that holds its target
    server(archive([(name, "/etc/passwd", mode)]))
    assert texts(open_prepared(prepare("babylm-10m", tmp_path / "cache", propose=257, quiet=True))) == ["/etc/passwd"]
    assert [p.name for p in tmp_path.rglob("x.train")] == ["x.train"] and not (ROOT / "x.train").exists()
    (file,) = (tmp_path / "cache/download/babylm-10m").iterdir()
    assert file.is_file() and not file.is_symlink() and not (tmp_path.parent / "x.train").exists()


def test_a_zip_unpacks_to_no_more_than_it_says(tmp_path, server):
    packed = archive([("a/bomb.train", "x" * 50_000_000, REG)])
    at = packed.index(b"PK\x01\x02") + 24  # the size, in the table at the end
    server(packed[:at] + (500).to_bytes(4, "little") + packed[at + 4 :])
    assert "no whole zip (Bad CRC-32" in refused("babylm-10m", tmp_path)  # of the 500 bytes: more were not unpacked
    assert not (tmp_path / "download/babylm-10m").exists()


def test_a_damaged_archive_is_named(tmp_path, server):
    server(b"")
    at = GOOD.index(b"bnc.train") + 12
    for damaged in (b"PK", GOOD[:-40], GOOD[:at] + bytes([GOOD[at] ^ 255]) + GOOD[at + 1 :], json.dumps({}).encode()):
        write(tmp_path / "download/train_10M.zip", damaged)
        assert "train_10M.zip" in refused("babylm-10m", tmp_path)
        assert not (tmp_path / "download/babylm-10m").exists()
