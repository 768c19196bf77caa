"""From a corpus to a prepared folder: tokens, boundaries of lines and documents, what is held out, the tokenizer.

    python data.py --data=toy
    python train.py --data=FOLDER        # the folder that data.py names

A *line* is an utterance, a sentence or a paragraph: the unit that curriculum.py orders. It ends with "\\n" or "\\r\\n".
A line without text, or the end of a file, ends a *document*: the unit that is held out. --split=sentences cuts lines
after . ! ? or …, and quotes or brackets that close there, if what follows, after white space, begins with anything but
a small letter of a to z; not after Mr, Mrs, Ms, Dr, Jr, Sr, St or one capital letter. A prepared folder has

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
import json
import os
import re
import secrets
import shutil
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

import numpy as np
from tqdm import tqdm

import terminal

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
MAX_UNPACKED = 4 << 30  # bytes that a .zip or a .gz may hold; the larger corpus has about 0.6 GB
MAX_LINE = 1 << 26  # bytes

# GPT-2's pattern with every repetition bounded: no input makes the regex engine backtrack until it panics (a million
# spaces do, otherwise), or makes a word of megabytes on which BPE takes hours. A tab is always a piece of its own, so
# that a token boundary follows every speaker label.
PATTERN = r"""'(?i:[sdmt]|ll|ve|re)| ?\p{L}{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,16}|\t|\s{1,16}(?!\S)|\s"""

# Longer lines are trained on and encoded in pieces of so many characters: the pattern of --tokenizer=gpt2 does panic on
# a million spaces, and rustbpe holds many pieces in memory at a time.
LONGEST_PIECE = 100_000

SENTENCE_END = re.compile(
    r"""(?<!\b[A-Z])(?<!\bM[rs])(?<!\bMrs)(?<!\b[DSJ][rt])([.!?…]["'”’)\]]*)\s+(?=["'“‘(\[]*[^\W_a-z])"""
)
LABEL = re.compile(r"\*?[^\W_](?:[^\W_]|[ .'\-]){0,31}:\t")


class DataError(ValueError):
    """A wrong corpus or setting. Its message is one line: the flag or file, what is wrong, what would be right."""

    def __init__(self, message: str) -> None:  # control characters, which names of files may have, are escaped
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


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
    digest: str  # of its lines; of toy.py
    lines: Callable[[], Iterator[str]]  # without their ends; "" ends a document, possibly many in a row
    n_lines: int | None = None  # None: not counted, of toy.py
    line_stage: np.ndarray | None = None  # only a folder of stages has some
    pairs: Callable[[], dict] | None = None  # minimal pairs; only the built-in corpus has some


def prepare(
    data: str, cache: Path, tokenizer: str = "bpe", vocab_size: int | None = None, propose: int = 16384,
    val_share: float = 0.05, encoding_errors: str = "strict", split: str = "lines", quiet: bool = False,
) -> Path:  # fmt: skip
    """Prepare a corpus, or find it prepared in `cache`, and return its folder.

    data: 'toy', 'babylm-10m', 'babylm-100m', a text file, a folder of them, or a prepared folder (returned as it is).
    vocab_size: tokens, end-of-text included; None takes `propose`, or as many as the text gives, and says so.
    val_share: share of the tokens to hold out, in whole documents, 0 <= val_share < 1.
    Raises DataError for a wrong corpus or setting, OSError if the machine fails.
    """
    cache = Path(cache)
    wanted = check_settings(data, tokenizer, vocab_size, propose, val_share, encoding_errors, split)
    if data == "toy":
        import toy

        lines = lambda: chain.from_iterable((*scene, "") for scene in toy.documents())  # noqa: E731
        text = Text("toy", file_digest(Path(toy.__file__)), lines, pairs=toy.minimal_pairs)
    else:
        path = fetch(data, cache, quiet) if data in DOWNLOADS else Path(data)
        if (path / "meta.json").exists():
            check_suits(open_prepared(path), tokenizer, vocab_size, split)
            return path
        text = text_of_files(path, encoding_errors, split)

    settings = dict(tokenizer=tokenizer, vocab_size=wanted, val_share=float(val_share), encoding_errors=encoding_errors)
    settings |= {} if split == "lines" else {"split": split}
    key = hashlib.blake2b(json.dumps([FORMAT, text.digest, settings]).encode()).hexdigest()[:12]
    folder = cache / f"{text.name}-{key}"
    if not folder.is_dir():
        if not any(text.lines()):
            raise DataError(f"--data: {data} holds no line of text; a corpus needs at least one")
        with new_folder(folder) as work:
            fill(work, text, settings, quiet)

    corpus = open_prepared(folder)
    if (largest := corpus.vocab_size) < wanted and vocab_size is not None:
        raise DataError(f"--vocab-size={vocab_size} is more than this text gives; the largest is {largest}")
    if largest < wanted and not quiet:
        print(f"data: the text gives a vocabulary of {largest} tokens, not the {wanted} proposed", file=sys.stderr)
    if val_share and not quiet and not corpus.doc_val.any():
        print("data: nothing is held out of a single document (lines without text end documents)", file=sys.stderr)
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
    train = {"bpe": train_bpe, "unigram": train_unigram}.get(settings["tokenizer"])
    bar = partial(tqdm, total=text.n_lines, unit="line", unit_scale=True, delay=1, disable=quiet or None)
    spec = train(bar(text.lines(), "tokenizer"), settings["vocab_size"]) if train else gpt2_tokenizer()
    write_sealed(work / "tokenizer.json", spec)
    encoding, encoded = load_tokenizer(work / "tokenizer.json"), hashlib.blake2b(digest_size=16)
    lines = hashed(bar(text.lines(), "encoding"), encoded)
    index, n_words = encode_lines(lines, encoding, work / "tokens.bin", settings["val_share"])
    if text.line_stage is not None:
        index["line_stage"] = text.line_stage
        encoded.update(text.line_stage)
    if text.n_lines is not None and encoded.hexdigest() != text.digest:
        raise DataError(f"--data: {text.name} changed while it was being prepared; start again")
    np.savez(work / "index.npz", **index)
    if text.pairs:
        encode = encoding.encode_ordinary
        pairs = {uid: [[encode(pair["sentence_good"]), encode(pair["sentence_bad"])] for pair in some]
                 for uid, some in text.pairs().items()}  # fmt: skip
        (work / "pairs.json").write_text(json.dumps(pairs))
    files = {p.name: {"bytes": p.stat().st_size, "blake2b": file_digest(p)} for p in sorted(work.iterdir())}
    meta = dict(format=FORMAT, corpus=text.name, content=text.digest, settings=settings, files=files)
    meta |= dict(vocab_size=encoding.n_vocab, eot=encoding.n_vocab - 1, n_tokens=int(index["line_start"][-1]))
    meta |= dict(n_lines=len(index["line_label"]), n_docs=len(index["doc_val"]))
    meta |= dict(n_val_docs=int(index["doc_val"].sum()), n_words=n_words)
    write_sealed(work / "meta.json", meta)


def check_settings(
    data: str, tokenizer: str, vocab_size: int | None, propose: int, val_share: float, encoding_errors: str, split: str
) -> int:
    """The vocabulary size to aim at. Raises DataError for a wrong corpus or setting."""
    flags = (("tokenizer", tokenizer), ("encoding-errors", encoding_errors), ("split", split))
    for (flag, value), known in zip(flags, ("bpe, unigram, gpt2", "strict, replace", "lines, sentences"), strict=True):
        if value not in known.split(", "):
            raise DataError(f"--{flag}={value} is unknown; it takes {known}")
    if tokenizer == "gpt2" and vocab_size not in (None, 50257):
        raise DataError(f"--vocab-size={vocab_size} does not go with --tokenizer=gpt2, which has 50257; leave it out")
    wanted = 50257 if tokenizer == "gpt2" else propose if vocab_size is None else vocab_size
    least = MIN_VOCAB + 3 * (tokenizer == "unigram")  # <unk>, a character and a longer piece
    if not least <= wanted <= MAX_VOCAB:
        raise DataError(f"--vocab-size={wanted} is out of range; it takes {least} (the bytes) to {MAX_VOCAB}")
    if not 0 <= val_share < 1:
        raise DataError(f"--val-share={val_share} is out of range; it takes a number from 0 to below 1")
    if data not in ("toy", *DOWNLOADS) and (not data or not Path(data).exists()):
        raise DataError(f"--data: {data!r} is no corpus; it takes toy, {', '.join(DOWNLOADS)}, a text file, a folder "
                        "of *.txt or *.train files (or those .gz), or a prepared folder")  # fmt: skip
    return wanted


def check_suits(prepared: Corpus, tokenizer: str, vocab_size: int | None, split: str) -> None:
    """A prepared folder brings its tokenizer and its lines. Raises DataError if the flags ask for others."""
    right = f"leave it out, --data={prepared.folder} was prepared with"
    if vocab_size not in (None, prepared.vocab_size):
        raise DataError(f"--vocab-size={vocab_size} does not fit: {right} {prepared.vocab_size}")
    if tokenizer not in ("bpe", prepared.meta["settings"]["tokenizer"]):
        raise DataError(f"--tokenizer={tokenizer} does not fit: {right} its own")
    if split not in ("lines", prepared.meta["settings"].get("split")):
        raise DataError(f"--split={split} does not fit: {right} its own lines")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A working folder beside `final` that takes its name when the block ends well, and is removed when it does not. If
    another process was first, its folder stays. A killed one leaves `.final...`, which nothing reads: delete it.
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


def summary(data: str, corpus: Corpus) -> str:
    """What was read, in one line."""
    meta, files, left_out = corpus.meta, [], Counter()
    if Path(data).is_dir() and not (Path(data) / "meta.json").exists():
        files = corpus_files(Path(data), left_out)
    held_out = np.diff(corpus.line_start)[corpus.val_lines()].sum() / meta["n_tokens"]
    read = (
        f"{len(files):,} file{'s' * (len(files) > 1)}, " if files else ""
    ) + f"{meta['n_words']:,} words in {meta['n_docs']:,} documents"
    others = "; left out: " * bool(left_out) + ", ".join(f"{count:,} {why}" for why, count in left_out.items())
    return f"{read}, {100 * held_out:.1f} % of the tokens held out{others}"


# --- Text -------------------------------------------------------------------------------------------------------------


def text_of_files(path: Path, encoding_errors: str, split: str) -> Text:
    """A text file, or a folder of them."""
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name).strip("-.")[:40] or "corpus"
    files = corpus_files(path)
    found = [STAGE.match(file.relative_to(path).as_posix()) for file in files]
    lines = partial(file_lines, encoding_errors=encoding_errors, split=split)
    digest, line_stage = hashlib.blake2b(digest_size=16), bytearray()
    for file, stage in zip(files, found, strict=True):
        line_stage += bytes([int(stage[1]) if stage else 0]) * sum(map(bool, hashed(lines([file]), digest)))
    line_stage = np.frombuffer(line_stage, np.uint8)
    digest.update(line_stage if all(found) else b"")
    return Text(name, digest.hexdigest(), partial(lines, files), len(line_stage), line_stage if all(found) else None)


def hashed(lines: Iterable[str], digest: "hashlib._Hash") -> Iterator[str]:
    """The lines; on their way they go into the digest."""
    for line in lines:
        digest.update(line.encode() + b"\n")
        yield line


def corpus_files(path: Path, left_out: Counter[str] | None = None) -> list[Path]:
    """The text files of a corpus: the file itself, or a folder's files in the order of their relative paths.

    Links to folders are followed, each folder is read once. What of a folder was left out is counted in `left_out`.
    """
    if not path.is_dir():
        if not path.is_file() or path.suffix.lower() in (".jsonl", ".json"):
            raise DataError(f"--data: {path} is no text; write its texts to a .txt file, an empty line after each")
        return [path]
    files, met, left_out = [], set(), Counter() if left_out is None else left_out
    unreadable = lambda _: left_out.update(["unreadable"])  # noqa: E731
    for folder, subfolders, names in os.walk(path, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in met:
            left_out["folders met before"] += 1
            subfolders.clear()
            continue
        met.add(real)
        subfolders.sort()
        for file in (Path(folder, name) for name in names):
            readable = file.is_file() and os.access(file, os.R_OK)
            why = "empty" if readable and not file.stat().st_size else "" if readable else "unreadable"
            why = why if file.name.lower().endswith(SUFFIXES) else "with another ending"
            left_out.update([why] if why else [])
            files += [] if why else [file]
    if not files:
        raise DataError(f"--data: the folder {path} holds no text; it needs *.txt or *.train files (or those .gz)")
    return sorted(files, key=lambda p: p.relative_to(path).as_posix())


def file_lines(files: list[Path], encoding_errors: str = "strict", split: str = "lines") -> Iterator[str]:
    """The lines of the files without their ends; "" ends a document. Raises DataError for what cannot be read."""
    for path in files:
        number, n_bytes, packed = 0, 0, path.suffix.lower() == ".gz"
        try:
            with gzip.open(path) if packed else open(path, "rb") as file:
                for number, raw in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):  # noqa: B007
                    n_bytes += len(raw)
                    if len(raw) > MAX_LINE or (packed and n_bytes > MAX_UNPACKED):
                        most = f"{MAX_LINE:,} bytes in a line and {MAX_UNPACKED:,} in a .gz"
                        raise DataError(f"--data: {path} is too large at line {number}; cut it up, it takes {most}")
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8", encoding_errors)
                    line = line.removesuffix("\n").removesuffix("\r") if line.strip() else ""
                    yield from SENTENCE_END.sub(r"\1\n", line).split("\n") if split == "sentences" else (line,)
        except UnicodeDecodeError as error:
            where = f"{path} is not UTF-8 at byte {error.start} (counted from 0) of line {number}"
            remedy = "prepare the folder with: python data.py --encoding-errors=replace --data=..."
            raise DataError(f"--data: {where}; convert it to UTF-8, or {remedy}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"--data: {path} is no whole .gz ({one_line(error)}); get it again, or unpack it") from None
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

    first_line, first_token = np.frombuffer(doc_start, np.int64), np.frombuffer(line_start, np.int64)
    doc_val = choose_validation(np.frombuffer(doc_hash, "<u8"), np.diff(first_token[first_line]), val_share)
    held_out = np.repeat(doc_val, np.diff(first_line))
    hashes, seen = np.frombuffer(line_hash, "<u8"), np.zeros(len(held_out), bool)
    seen[held_out] = np.isin(hashes[held_out], hashes[~held_out])
    labels = np.frombuffer(line_label, np.uint8)
    index = dict(line_start=first_token, line_label=labels, line_seen=seen, doc_start=first_line, doc_val=doc_val)
    return index, n_words


def choose_validation(doc_hash: np.ndarray, doc_tokens: np.ndarray, val_share: float) -> np.ndarray:
    """Which documents to hold out, by the hash (uint64) of their content: identical documents go together.

    Those with the lowest hashes are. If they have less than half of the wanted share of the tokens, or more than twice
    as much: in the order of hashes, each document that still fits; if none does, the smallest.
    """
    distinct, which = np.unique(doc_hash, return_inverse=True)
    if val_share == 0 or len(distinct) == 1:
        return np.zeros(len(doc_hash), bool)
    held_out, size = distinct < np.uint64(int(val_share * 2**64)), np.bincount(which, doc_tokens) / doc_tokens.sum()
    if not val_share / 2 <= size[held_out].sum() <= min(2 * val_share, (1 + val_share) / 2):
        held_out[:], room = False, val_share
        for i in np.flatnonzero(size <= room):
            if size[i] <= room:
                held_out[i], room = True, room - size[i]
        held_out[size.argmin()] |= not held_out.any()
    return held_out[which]


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
    """The folder with the text of a published corpus: found in the cache, unpacked from a zip there, or downloaded
    (again, if that zip is another). Raises DataError, saying what to fetch by hand and where to put it, if that fails.
    """
    url, zip_name, md5 = DOWNLOADS[name]
    folder, archive = cache / "download" / name, cache / "download" / zip_name
    if folder.is_dir():
        return folder
    try:
        import pooch
        import requests
    except ImportError:
        raise DataError(f"--data={name}: pooch, which downloads it, is missing: pip install pooch") from None
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=not quiet and sys.stderr.isatty(), timeout=DOWNLOAD_TIMEOUT)
    try:
        pooch.retrieve(url, md5 and f"md5:{md5}", zip_name, archive.parent, downloader=downloader)
        unpack(archive, folder)
    except (requests.RequestException, ValueError) as error:  # ValueError: pooch compared the md5, or ours
        page = f"page: {DOWNLOAD_PAGE}" + (f", md5: {md5}" if md5 else "")
        by_hand = f"fetch {url} by hand ({page}) and put it at {archive}, or its *.train files into {folder}"
        raise DataError(f"--data={name}: {one_line(error)}; {by_hand}") from None
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the *.txt and *.train members of a zip into `folder`, all or nothing, under their base names: whatever the
    archive says, nothing is written elsewhere. Raises DataError for one that is damaged or too large, or holds no text.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            # __MACOSX holds Apple's file attributes under the names of the files.
            texts = [i for i in source.infolist() if re.search(r"^(?!__macosx/).*\.(txt|train)$", i.filename.lower())]
            names = [re.split(r"[/\\]", info.filename)[-1] for info in texts]
            if not texts or len({name.lower() for name in names}) < len(names):
                raise DataError("holds two files of one name" if texts else "holds no *.train or *.txt file")
            if sum(info.file_size for info in texts) > MAX_UNPACKED:  # zipfile unpacks no more than file_size says
                raise DataError(f"unpacks to more than {MAX_UNPACKED} bytes")
            with new_folder(folder) as work:
                for info, name in zip(texts, names, strict=True):
                    info.filename = name
                    source.extract(info, work)
    except OSError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for a damaged archive
        what = f"{error}: refused" if isinstance(error, DataError) else f"is no whole zip ({one_line(error)})"
        raise DataError(f"{archive} {what}; delete it") from None


# --- Program ----------------------------------------------------------------------------------------------------------


def get_parser() -> argparse.ArgumentParser:
    """The flags. `python data.py --help` prints this list."""
    layout = argparse.RawDescriptionHelpFormatter
    # Without a usage text an error is one line.
    parser = argparse.ArgumentParser("data.py", argparse.SUPPRESS, __doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    # fmt: off
    add("--data", default="toy", help="toy (built in), a text file, a folder searched for *.txt and *.train (.gz too), "
        "a prepared folder, babylm-10m or babylm-100m (default: toy)")
    add("--tokenizer", default="bpe", help="bpe or unigram, trained on the text, or gpt2 (default: bpe)")
    add("--vocab-size", type=int, help="tokens, end-of-text included (default: as train.py proposes without "
        "--preset, 2048 on a CPU, or what the text gives)")
    add("--val-share", type=float, default=0.05, help="share of the tokens held out, as documents (default: 0.05)")
    add("--encoding-errors", default="strict",
        help="text that is not UTF-8: strict stops, replace puts U+FFFD in its place (default: strict)")
    add("--split", default="lines", help="sentences cuts lines after each sentence, see above (default: lines)")
    add("--cache", type=Path, default=Path("data/cache"), help="where prepared corpora are kept (default: data/cache)")
    # fmt: on
    return parser


def main() -> None:
    """Prepare a corpus; print its folder and counts."""
    parser = get_parser()
    args = parser.parse_args()
    import machine
    from model import PRESETS

    try:
        preset = machine.usual_preset(machine.pick_device(), about_words(args.data))
        folder = prepare(**vars(args), propose=PRESETS[preset].vocab_size)
        corpus = open_prepared(folder)
        print(folder)
        print(summary(args.data, corpus))
    except DataError as error:
        parser.error(str(error))
    counts = corpus.meta | {"n_val_lines": len(corpus.val_lines()), "n_seen_lines": int(corpus.line_seen.sum())}
    print(*(f"{name:>12} {n:>12,}" for name, n in counts.items() if name.startswith(("n_", "vocab"))), sep="\n")


if __name__ == "__main__":
    terminal.prepare("data.py")
    main()
