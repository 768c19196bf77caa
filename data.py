"""From a corpus to a prepared folder: tokens, boundaries of lines and documents, what is held out, the tokenizer.

    python data.py --data=toy
    python train.py --data=FOLDER        # the folder that data.py names

A *line* is an utterance, a sentence or a paragraph: the unit that curriculum.py orders. Files are split at "\\n" alone.
An empty line, or the end of a file, ends a *document*: the unit that is held out. A prepared folder has

    tokens.bin      uint16: every line in the order of the corpus, each followed by the end-of-text token
    index.npz       line_start int64 (n_lines + 1,)  offset of each line in tokens.bin
                    line_label uint8 (n_lines,)      how many tokens at the start of the line are its speaker label
                    line_seen bool (n_lines,)        held out, but its text is also that of a training line
                    doc_start int64 (n_docs + 1,)    first line of each document
                    doc_val bool (n_docs,)           held out
                    line_stage uint8 (n_lines,)      only if all text is in sub-folders named like 1-short: the number
    tokenizer.json  name, split pattern and tokens (base64, in rank order), all that tiktoken needs; or name and JSON
    pairs.json      toy corpus only: {UID: [[good ids, bad ids], ...]}, its minimal pairs, without end-of-text
    meta.json       counts, settings, size and digest of every other file; written last

The tokenizer is a byte-level BPE trained on the corpus itself (rustbpe trains, tiktoken encodes) or tiktoken's GPT-2.
Or it is a Unigram model with byte fallback, by the tokenizers package: its tokens decode to the text in the form NFKC.
"""

import argparse
import base64
import gzip
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import stat
import sys
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

FORMAT = 1  # of the prepared folder; a change here makes every corpus be prepared again
EOT = "<|endoftext|>"
MIN_VOCAB, MAX_VOCAB = 257, 65536  # 256 bytes and end-of-text; what uint16 can hold
SUFFIXES = (".txt", ".train", ".txt.gz", ".train.gz")
STAGE = re.compile(r"(\d{1,2})-[^/]*/")  # a sub-folder that is a stage of the curriculum

# name: (address, name of the archive, its md5 where known)
DOWNLOADS = {
    "babylm-10m": ("https://osf.io/download/5mk3x/", "train_10M.zip", "dc67e5d2db96ed4f76cb072e2504a18c"),
    "babylm-100m": ("https://osf.io/download/rduj2/", "train_100M.zip", None),
}
DOWNLOAD_PAGE = "https://osf.io/ad7qg"
DOWNLOAD_TIMEOUT = 30  # seconds without a byte
MAX_UNPACKED = 4 << 30  # bytes; the larger corpus has about 0.6 GB

# GPT-2's pattern with every repetition bounded: no input makes the regex engine backtrack until it panics (a million
# spaces do, otherwise), or makes a word of megabytes on which BPE takes hours. A tab is always a piece of its own, so
# that a token boundary follows every speaker label.
PATTERN = r"""'(?i:[sdmt]|ll|ve|re)| ?\p{L}{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,16}|\t|\s{1,16}(?!\S)|\s"""

# Longer lines are trained on and encoded in pieces of so many characters: the pattern of --tokenizer=gpt2 does panic on
# a million spaces, and rustbpe holds many pieces in memory at a time.
LONGEST_PIECE = 100_000

LABEL = re.compile(r"\*?[^\W_](?:[^\W_]|[ .'\-]){0,31}:\t")


class DataError(ValueError):
    """A wrong corpus or setting. Its message is one line: the flag or file, what is wrong, what would be right."""


# --- Preparation ------------------------------------------------------------------------------------------------------


@dataclass
class Corpus:
    """An opened prepared folder; the arrays are described at the top of this file."""

    folder: Path
    tokens: np.memmap
    line_start: np.ndarray
    line_label: np.ndarray
    line_seen: np.ndarray
    doc_start: np.ndarray
    doc_val: np.ndarray
    meta: dict
    pairs: dict[str, list] | None
    line_stage: np.ndarray | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, end-of-text included."""
        return self.meta["vocab_size"]

    @property
    def eot(self) -> int:
        """The id of the end-of-text token, the last one."""
        return self.meta["eot"]

    def train_lines(self) -> np.ndarray:
        """Indices (int64) of the lines to train on, in the order of the corpus."""
        return np.flatnonzero(~np.repeat(self.doc_val, np.diff(self.doc_start)))

    def val_lines(self) -> np.ndarray:
        """Indices (int64) of the held-out lines, in the order of the corpus, those with line_seen included."""
        return np.flatnonzero(np.repeat(self.doc_val, np.diff(self.doc_start)))


@dataclass
class Text:
    """A corpus before its preparation."""

    name: str
    digest: str  # of its content
    n_bytes: int | None
    lines: Callable[[tqdm], Iterator[str]]  # without their "\n"; "" ends a document, possibly many in a row
    pairs: Callable[[], dict] | None = None  # minimal pairs; only the built-in corpus has some
    stages: Callable[[], Iterator[int]] | None = None  # of its lines; only a folder of stages has some


def prepare(
    data: str,
    cache: Path,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    propose: int = 16384,
    val_share: float = 0.05,
    encoding_errors: str = "strict",
    quiet: bool = False,
) -> Path:
    """Prepare a corpus, or find it prepared in `cache`, and return its folder.

    data: 'toy', 'babylm-10m', 'babylm-100m', a text file, a folder of them, or a prepared folder (returned as it is).
    vocab_size: tokens, end-of-text included; None takes `propose`, or as many as the text gives, and says so.
    val_share: share of the documents to hold out, 0 <= val_share < 1.
    Raises DataError for a wrong corpus or setting, OSError if the machine fails.
    """
    cache = Path(cache)
    wanted = check_settings(data, tokenizer, vocab_size, propose, val_share, encoding_errors)
    if data == "toy":
        text = toy_text()
    else:
        path = fetch(data, cache, quiet) if data in DOWNLOADS else Path(data)
        if (path / "meta.json").exists():
            check_suits(open_prepared(path), tokenizer, vocab_size)
            return path
        text = text_of_files(path, encoding_errors)

    settings = dict(tokenizer=tokenizer, vocab_size=wanted, val_share=float(val_share), encoding_errors=encoding_errors)
    key = hashlib.blake2b(json.dumps([FORMAT, text.digest, settings]).encode()).hexdigest()[:12]
    folder = cache / f"{text.name}-{key}"
    if not folder.is_dir():
        if not any(text.lines(tqdm(disable=True))):
            raise DataError(f"--data: {data} holds no line of text; a corpus needs at least one")
        with new_folder(folder) as work:
            fill(work, text, settings, quiet)

    corpus, notes = open_prepared(folder), []
    largest = corpus.vocab_size
    if largest < wanted:
        if vocab_size is not None:
            raise DataError(f"--vocab-size={vocab_size} is more than this text gives; the largest is {largest}")
        notes.append(f"the text gives a vocabulary of {largest} tokens, not the {wanted} proposed")
    if val_share and not corpus.doc_val.any():
        notes.append("the corpus has only one document (empty lines end documents): nothing is held out")
    for note in notes if not quiet else ():
        print(f"data: {note}", file=sys.stderr)
    return folder


def about_words(data: str) -> float:
    """How many words a corpus has, about, before it is prepared: by its bytes. 0 if there is no such text."""
    path = Path(data)
    if data in DOWNLOADS:
        return 1e6 * int(re.sub(r"\D", "", data))
    if data == "toy" or not path.exists():
        return 0
    if (path / "meta.json").exists():
        return read_sealed(path / "meta.json", "prepare the corpus again")["n_words"]
    return sum(file.stat().st_size for file in corpus_files(path)) / 5.5


def fill(work: Path, text: Text, settings: dict, quiet: bool) -> None:
    """Write the files of a prepared folder."""
    with progress("tokenizer", text.n_bytes, quiet) as bar:
        train = {"bpe": train_bpe, "unigram": train_unigram}.get(settings["tokenizer"])
        spec = train(text.lines(bar), settings["vocab_size"]) if train else gpt2_tokenizer()
    write_sealed(work / "tokenizer.json", spec)
    encoding = load_tokenizer(work / "tokenizer.json")
    with progress("encoding", text.n_bytes, quiet) as bar:
        index, n_words = encode_lines(text.lines(bar), encoding, work / "tokens.bin", settings["val_share"])
    if text.stages:
        index["line_stage"] = np.fromiter(text.stages(), np.uint8)
    np.savez(work / "index.npz", **index)
    if text.pairs:
        (work / "pairs.json").write_text(json.dumps(encode_pairs(text.pairs(), encoding)))
    files = {p.name: {"bytes": p.stat().st_size, "blake2b": file_digest(p)} for p in sorted(work.iterdir())}
    meta = dict(format=FORMAT, corpus=text.name, content=text.digest, settings=settings, files=files)
    meta |= dict(vocab_size=encoding.n_vocab, eot=encoding.n_vocab - 1, n_tokens=int(index["line_start"][-1]))
    meta |= dict(n_lines=len(index["line_label"]), n_docs=len(index["doc_val"]))
    meta |= dict(n_val_docs=int(index["doc_val"].sum()), n_words=n_words)
    write_sealed(work / "meta.json", meta)


def check_settings(
    data: str, tokenizer: str, vocab_size: int | None, propose: int, val_share: float, encoding_errors: str
) -> int:
    """The vocabulary size to aim at. Raises DataError for a wrong corpus or setting."""
    if tokenizer not in ("bpe", "unigram", "gpt2"):
        raise DataError(f"--tokenizer={tokenizer} is unknown; it takes bpe, unigram or gpt2")
    if tokenizer == "gpt2" and vocab_size not in (None, 50257):
        raise DataError(f"--vocab-size={vocab_size} does not go with --tokenizer=gpt2, which has 50257; leave it out")
    wanted = 50257 if tokenizer == "gpt2" else propose if vocab_size is None else vocab_size
    least = MIN_VOCAB + 3 * (tokenizer == "unigram")  # <unk>, a character and a longer piece
    if not least <= wanted <= MAX_VOCAB:
        raise DataError(f"--vocab-size={wanted} is out of range; it takes {least} (the bytes) to {MAX_VOCAB}")
    if not 0 <= val_share < 1:
        raise DataError(f"--val-share={val_share} is out of range; it takes a number from 0 to below 1")
    if encoding_errors not in ("strict", "replace"):
        raise DataError(f"--encoding-errors={encoding_errors} is unknown; it takes strict or replace")
    if data not in ("toy", *DOWNLOADS) and (not data or not Path(data).exists()):
        raise DataError(f"--data: {data!r} is no corpus; it takes toy, {', '.join(DOWNLOADS)}, a text file, a folder "
                        "of *.txt or *.train files (or those .gz), or a prepared folder")  # fmt: skip
    return wanted


def check_suits(prepared: Corpus, tokenizer: str, vocab_size: int | None) -> None:
    """A prepared folder brings its tokenizer with it. Raises DataError if the flags ask for another."""
    if vocab_size not in (None, prepared.vocab_size):
        right = f"leave it out, --data={prepared.folder} was prepared with {prepared.vocab_size}"
        raise DataError(f"--vocab-size={vocab_size} does not fit: {right}")
    if tokenizer not in ("bpe", prepared.meta["settings"]["tokenizer"]):
        raise DataError(f"--tokenizer={tokenizer} does not fit: --data={prepared.folder} has its own; leave it out")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A working folder beside `final` that takes its name when the block ends well, and is removed when it does not.

    If another process was first, its folder stays. A killed process leaves its working folder (its name starts with a
    dot), which nothing reads and anybody may delete.
    """
    work = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}")
    work.mkdir(parents=True)
    try:
        yield work
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def progress(what: str, total: int | None, quiet: bool) -> tqdm:
    """A bar that counts bytes; invisible unless stderr is a terminal and the work takes more than a second."""
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=1, disable=True if quiet else None)


# --- Text -------------------------------------------------------------------------------------------------------------


def toy_text() -> Text:
    """The built-in corpus."""
    import toy

    def lines(bar: tqdm) -> Iterator[str]:
        for scene in toy.documents():
            for line in scene:
                yield line
                bar.update(len(line) + 1)
            yield ""

    return Text("toy", file_digest(Path(toy.__file__)), None, lines, toy.minimal_pairs)


def text_of_files(path: Path, encoding_errors: str) -> Text:
    """A text file, or a folder of them."""
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name).strip("-.")[:40] or "corpus"
    files = corpus_files(path)
    outer, n_bytes = hashlib.blake2b(digest_size=16), 0
    for file in files:
        inner = hashlib.blake2b(digest_size=16)
        with open_text(file) as content:
            while chunk := content.read(1 << 20):
                inner.update(chunk)
                n_bytes += len(chunk)
        outer.update(inner.digest())  # digests, not contents: the end of a file ends a document
    found = [STAGE.match(file.relative_to(path).as_posix()) for file in files]
    stages = [int(match[1]) for match in found] if all(found) else []
    outer.update(bytes(stages))
    per_line = partial(line_stages, files, stages, encoding_errors) if stages else None
    return Text(name, outer.hexdigest(), n_bytes, partial(file_lines, files, encoding_errors), stages=per_line)


def line_stages(files: list[Path], stages: list[int], encoding_errors: str) -> Iterator[int]:
    """The stage of every line of the files, of which `stages` has one each."""
    for file, stage in zip(files, stages, strict=True):
        yield from (stage for line in file_lines([file], encoding_errors, tqdm(disable=True)) if line)


def corpus_files(path: Path) -> list[Path]:
    """The text files of a corpus: the file itself, or a folder's files in the order of their relative paths."""
    if path.is_file():
        return [path]
    files = [p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file()]
    if not files:
        raise DataError(f"--data: the folder {path} holds no text; it needs *.txt or *.train files (or those .gz)")
    return sorted(files, key=lambda p: p.relative_to(path).as_posix())


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """A text file, unpacked if it ends in .gz. Raises DataError if that is damaged."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"--data: {path} is cut off or damaged ({one_line(error)}); it must be a whole .gz") from None


def file_lines(files: list[Path], encoding_errors: str, bar: tqdm) -> Iterator[str]:
    """The lines of the files without their "\\n"; "" ends a document."""
    for path in files:
        offset = 0
        with open_text(path) as file:
            for raw in file:
                try:
                    line = raw.removesuffix(b"\n").decode("utf-8", encoding_errors)
                except UnicodeDecodeError as error:
                    where = f"{path} is not UTF-8 at byte {offset + error.start} (counted from 0)"
                    remedy = "prepare the folder with: python data.py --encoding-errors=replace --data=..."
                    raise DataError(f"--data: {where}; convert it to UTF-8, or {remedy}") from None
                # A lone "\r" is how an empty line looks in a file with CRLF line ends. Other "\r" belong to the text.
                yield "" if line == "\r" else line
                offset += len(raw)
                bar.update(len(raw))
        yield ""


def split_label(line: str) -> tuple[str, str]:
    """Speaker label ("*MOT:\\t", "Mrs. B-2:\\t"; "" if there is none) and the rest of the line."""
    match = LABEL.match(line)
    return (match[0], line[match.end() :]) if match else ("", line)


def pieces(text: str) -> Iterator[str]:
    """A text in parts that the tokenizer can take."""
    return (text[i : i + LONGEST_PIECE] for i in range(0, len(text), LONGEST_PIECE))


# --- Tokenizer --------------------------------------------------------------------------------------------------------


def train_bpe(lines: Iterable[str], vocab_size: int) -> dict:
    """Train a byte-level BPE of `vocab_size` tokens, end-of-text included; of fewer if the text gives no more."""
    import rustbpe

    bpe = rustbpe.Tokenizer()
    # A small buffer: rustbpe holds this many pieces at a time.
    bpe.train_from_iterator((p for line in lines for p in pieces(line)), vocab_size - 1, 1024, PATTERN)
    tokens = [bytes(token) for token, _ in sorted(bpe.get_mergeable_ranks(), key=lambda entry: entry[1])]
    return tokenizer_spec("bpe", PATTERN, tokens)


def train_unigram(lines: Iterable[str], vocab_size: int) -> dict:
    """Train a Unigram model likewise. Holds the distinct words of the text in memory."""
    first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]  # PATTERN makes no word of a text one of these
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    model = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[token, 0.0] for token in first]}
    spec = {"normalizer": {"type": "NFKC"}, "pre_tokenizer": split, "model": model}
    unigram = Unigram(json.dumps(spec))
    # "\0" is the library's mark for the end of a word.
    texts = (unigram.normalize(piece).replace("\0", " ") for line in lines for piece in pieces(line))
    words = Counter(word for text in texts for word, _ in unigram.model.pre_tokenizer.pre_tokenize_str(text))
    chars = Counter(chain.from_iterable(word * count for word, count in words.items()))
    # The most frequent characters that make up 99.95 % of the text are pieces. Others are left to the bytes.
    common = chars.most_common(vocab_size - MIN_VOCAB - 2)
    n_known = 1 + sum(n < 0.9995 * chars.total() for n in accumulate(count for _, count in common))
    unknown = re.compile(f"[^{re.escape(''.join(char for char, _ in common[:n_known]))}]+")
    parts = ((part, count) for word, count in words.items() for part in unknown.split(word) if part)
    # It tries as a piece what different characters follow in distinct words: for a whole word, "\n" is the second one.
    fed = (text for part, count in parts for text in (part + "\n", *repeat(part, count)))
    trainer = unigram.trainer(vocab_size=vocab_size, show_progress=False, special_tokens=first, unk_token="<unk>")
    unigram.model.pre_tokenizer = None
    unigram.model.train_from_iterator(fed, trainer)
    # Each training ends in other last digits and another order of equals. Characters that would else be lost get the
    # lowest score and up, in steps of 0.0001, by chance.
    trained = [x for x in json.loads(unigram.model.to_str())["model"]["vocab"][len(first) :] if x[0] != "\n"]
    lowest = min(score for _, score in trained) + 1e-4 * (n_known + 1)
    ranked = sorted((-round(max(score, lowest), 6), piece) for piece, score in trained)
    model["vocab"] += [[piece, -cost] for cost, piece in ranked]
    return {"name": "unigram", "json": json.dumps(spec)}


class Unigram:
    """What we use of a tiktoken.Encoding, for a model in the JSON of the tokenizers package."""

    def __init__(self, spec: str) -> None:
        try:
            from tokenizers import Tokenizer, trainers
        except ImportError:
            raise DataError("--tokenizer=unigram: its package tokenizers is missing: pip install tokenizers") from None
        self.model, self.trainer = Tokenizer.from_str(spec), trainers.UnigramTrainer
        tokens = [*map(self.model.id_to_token, range(self.model.get_vocab_size())), EOT]
        self.tokens = [bytes([i - 1]) if 0 < i <= 256 else token.encode() for i, token in enumerate(tokens)]
        self.n_vocab, self.eot_token = len(tokens), len(tokens) - 1
        self.decode_single_token_bytes = self.tokens.__getitem__
        self.normalize = self.model.normalizer.normalize_str  # a text to what its tokens decode to

    def encode_ordinary(self, text: str) -> list[int]:
        return self.model.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")


def gpt2_tokenizer() -> dict:
    """tiktoken's GPT-2 tokenizer, fetched by tiktoken the first time. Raises DataError if that fails."""
    import tiktoken

    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever requests, the disk cache or tiktoken's check of the download raises
        raise DataError("--tokenizer=gpt2 needs a network the first time, and fetching it failed "
                        f"({type(error).__name__}); --tokenizer=bpe needs none") from None  # fmt: skip
    return tokenizer_spec("gpt2", gpt2._pat_str, [gpt2.decode_single_token_bytes(i) for i in range(gpt2.eot_token)])


def tokenizer_spec(name: str, pattern: str, tokens: list[bytes]) -> dict:
    """What tokenizer.json holds: tokens in the order of their ids, end-of-text not among them."""
    return {"name": name, "pattern": pattern, "tokens": [base64.b64encode(token).decode() for token in tokens]}


def encode_lines(lines: Iterable[str], encoding, path: Path, val_share: float) -> tuple[dict[str, np.ndarray], int]:
    """Write the tokens of all lines to `path`; return the arrays of index.npz and the number of words.

    Holds 17 bytes a line in memory and never the text.
    """
    line_start, line_label, line_hash = array("q", [0]), array("B"), bytearray()
    doc_start, doc_hash = array("q", [0]), bytearray()
    encode_label = lru_cache(4096)(encoding.encode_ordinary)
    document = hashlib.blake2b(digest_size=8)
    n_words = 0
    with open(path, "wb") as out:
        for line in lines:
            if line:
                # Label and rest apart, so that the label is a whole number of tokens whatever the tokenizer. With
                # PATTERN this is what encoding the whole line gives.
                label, text = split_label(line)
                ids = array("H", encode_label(label))
                line_label.append(min(len(ids), 255))  # NFKC can make a label longer
                for piece in pieces(text):
                    ids.extend(encoding.encode_ordinary(piece))
                ids.append(encoding.n_vocab - 1)
                out.write(ids)
                line_start.append(line_start[-1] + len(ids))
                line_hash += hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
                document.update(line.encode() + b"\n")
                n_words += len(line.split())
            elif len(line_label) > doc_start[-1]:
                doc_start.append(len(line_label))
                doc_hash += document.digest()
                document = hashlib.blake2b(digest_size=8)

    doc_val = choose_validation(np.frombuffer(doc_hash, "<u8"), val_share)
    held_out = np.repeat(doc_val, np.diff(np.frombuffer(doc_start, np.int64)))
    hashes, seen = np.frombuffer(line_hash, "<u8"), np.zeros(len(held_out), bool)
    seen[held_out] = np.isin(hashes[held_out], hashes[~held_out])
    index = {
        "line_start": np.frombuffer(line_start, np.int64),
        "line_label": np.frombuffer(line_label, np.uint8),
        "line_seen": seen,
        "doc_start": np.frombuffer(doc_start, np.int64),
        "doc_val": doc_val,
    }
    return index, n_words


def choose_validation(doc_hash: np.ndarray, val_share: float) -> np.ndarray:
    """Which documents to hold out, by the hash (uint64) of their content: identical documents go together.

    If the hashes of a small corpus pick none, the lowest is held out. If they pick all, the highest is trained on.
    """
    distinct = np.unique(doc_hash)
    if val_share == 0 or len(distinct) == 1:
        return np.zeros(len(doc_hash), bool)
    val = doc_hash < np.uint64(int(val_share * 2**64))
    if not val.any():
        return doc_hash == distinct[0]
    return doc_hash != distinct[-1] if val.all() else val


def encode_pairs(pairs: dict[str, list], encoding) -> dict[str, list]:
    """The built-in corpus's minimal pairs by paradigm, as [good ids, bad ids]."""
    encode = encoding.encode_ordinary
    return {uid: [[encode(p["sentence_good"]), encode(p["sentence_bad"])] for p in pairs[uid]] for uid in pairs}


# --- Prepared folders -------------------------------------------------------------------------------------------------


def open_prepared(folder: Path) -> Corpus:
    """Open a prepared folder after checking size and digest of every file in it (about a second per GB).

    Raises DataError naming the file that is missing, damaged or of another format version.
    """
    folder = Path(folder)
    remedy = f"delete the folder {folder} and prepare the corpus again, or restore it from a copy"
    meta = read_sealed(folder / "meta.json", remedy)
    if meta.get("format") != FORMAT:
        raise DataError(f"{folder / 'meta.json'} has format {meta.get('format')!r}, not {FORMAT}; {remedy}")
    for name, known in meta["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; {remedy}")
        if path.stat().st_size != known["bytes"] or file_digest(path) != known["blake2b"]:
            raise DataError(f"{path} is damaged (not as meta.json records it); {remedy}")
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        arrays = dict(index)
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    pairs = json.loads((folder / "pairs.json").read_bytes()) if "pairs.json" in meta["files"] else None
    return Corpus(folder, tokens, **arrays, meta=meta, pairs=pairs)


def load_tokenizer(path: Path) -> "tiktoken.Encoding | Unigram":  # noqa: F821
    """The tokenizer of a tokenizer.json, end-of-text (its last id) as the only special token.

    Needs neither rustbpe nor a network. Raises DataError if the file is missing or damaged.
    """
    import tiktoken

    remedy = "the prepared folder of its corpus holds the same file, and can be prepared again"
    spec = read_sealed(Path(path), remedy)
    try:
        if spec["name"] == "unigram":
            return Unigram(spec["json"])
        ranks = {base64.b64decode(token, validate=True): rank for rank, token in enumerate(spec["tokens"])}
        if len(ranks) != len(spec["tokens"]) or not all(bytes([b]) in ranks for b in range(256)):
            raise ValueError("a token is there twice, or one of the 256 bytes is missing")
        special = {EOT: len(ranks)}
        return tiktoken.Encoding(spec["name"], pat_str=spec["pattern"], mergeable_ranks=ranks, special_tokens=special)
    except DataError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        raise DataError(f"{path} is no tokenizer ({one_line(error)}); {remedy}") from None


def write_sealed(path: Path, content: dict) -> None:
    """Write JSON whose last entry is a digest of the others."""
    path.write_bytes(sealed(content))


def read_sealed(path: Path, remedy: str) -> dict:
    """Read what write_sealed wrote. DataError unless it is, byte for byte, what write_sealed would write."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        content.pop("seal")
        whole = sealed(content) == raw
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DataError(f"{path} is damaged or was edited (its digest does not match); {remedy}")
    return content


def sealed(content: dict) -> bytes:
    """JSON with a digest of itself, so that damage shows."""
    seal = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    return (json.dumps(content | {"seal": seal}, indent=1) + "\n").encode()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, cut at 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- Downloads --------------------------------------------------------------------------------------------------------


def fetch(name: str, cache: Path, quiet: bool) -> Path:
    """The folder with the text of a published corpus: found in the cache, unpacked from a zip there, or downloaded.

    A zip in the cache that is not the published one is downloaded again.
    Raises DataError, saying what to fetch by hand and where to put it, if that fails.
    """
    url, zip_name, md5 = DOWNLOADS[name]
    folder, archive = cache / "download" / name, cache / "download" / zip_name
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("pooch") is None:
        raise DataError(f"--data={name}: pooch, which downloads it, is missing: pip install pooch")
    try:
        download(url, archive, md5, quiet)
        unpack(archive, folder)
    except DataError as error:
        page = f"page: {DOWNLOAD_PAGE}" + (f", md5: {md5}" if md5 else "")
        by_hand = f"fetch {url} by hand ({page}) and put it at {archive}, or its *.train files into {folder}"
        raise DataError(f"--data={name}: {error}; {by_hand}") from None
    return folder


def download(url: str, archive: Path, md5: str | None, quiet: bool) -> None:
    """Download to `archive` unless it is there. Raises DataError if it cannot be had whole, or is another file."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    bar = not quiet and sys.stderr.isatty()
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT)
    try:
        pooch.retrieve(url, md5 and f"md5:{md5}", archive.name, archive.parent, downloader=downloader)
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be had ({one_line(error)})") from None
    except ValueError:  # pooch compared the md5
        raise DataError(f"{url} sent something else than the published file") from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the *.txt and *.train members of a zip into `folder` under their base names, all or nothing.

    Raises DataError for an archive that is damaged, holds no text, or could write outside the folder.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = text_members(source)
            with new_folder(folder) as work:
                for name, info in members.items():
                    info.filename = name
                    source.extract(info, work)
    except DataError as error:
        raise DataError(f"{archive} {error}: refused; delete it") from None
    except OSError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for a damaged archive
        raise DataError(f"{archive} is no whole zip ({one_line(error)}); delete it") from None


def text_members(source: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The *.txt and *.train members of a zip by base name. DataError if one of its members is not to be trusted."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in source.infolist():
        parts = info.filename.replace("\\", "/").split("/")
        if not parts[0] or ".." in parts or ":" in parts[0] or stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"holds {info.filename!r}, a link or a way out")
        # __MACOSX holds Apple's file attributes under the names of the files.
        if parts[0] == "__MACOSX" or not parts[-1].lower().endswith((".txt", ".train")):
            continue
        if parts[-1].lower() in map(str.lower, members):
            raise DataError(f"holds two files named {parts[-1]}")
        members[parts[-1]] = info
    if not members:
        raise DataError("holds no *.train or *.txt file")
    if sum(info.file_size for info in members.values()) > MAX_UNPACKED:  # zipfile unpacks no more than file_size says
        raise DataError(f"unpacks to more than {MAX_UNPACKED} bytes")
    return members


# --- Program ----------------------------------------------------------------------------------------------------------


def get_parser() -> argparse.ArgumentParser:
    """The flags. `python data.py --help` prints this list."""
    parser = argparse.ArgumentParser(
        prog="data.py",
        usage=argparse.SUPPRESS,  # so that an error is one line
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    add = parser.add_argument
    # fmt: off
    add("--data", default="toy", help="toy (built in), a text file, a folder searched for *.txt and *.train (.gz too), "
        "a prepared folder, babylm-10m or babylm-100m (default: toy)")
    add("--tokenizer", default="bpe", help="bpe or unigram, trained on the text, or gpt2 (default: bpe)")
    add("--vocab-size", type=int, help="tokens, end-of-text included (default: 16384, or what the text gives)")
    add("--val-share", type=float, default=0.05, help="share of documents held out (default: 0.05)")
    add("--encoding-errors", default="strict",
        help="text that is not UTF-8: strict stops, replace puts U+FFFD in its place (default: strict)")
    add("--cache", type=Path, default=Path("data/cache"), help="where prepared corpora are kept (default: data/cache)")
    # fmt: on
    return parser


def main() -> None:
    """Prepare a corpus; print its folder and counts."""
    parser = get_parser()
    try:
        folder = prepare(**vars(parser.parse_args()))
        corpus = open_prepared(folder)
    except DataError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f"data.py: error: {one_line(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "data.py: interrupted\n")
    print(folder)
    for count in ("n_words", "n_tokens", "vocab_size", "n_lines", "n_docs", "n_val_docs"):
        print(f"{count:>12} {corpus.meta[count]:>12,}")
    print(f"{'seen lines':>12} {int(corpus.line_seen.sum()):>12,} of {len(corpus.val_lines()):,} held-out lines")


if __name__ == "__main__":
    main()
