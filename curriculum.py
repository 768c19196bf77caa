"""Which text comes when: the difficulty of a line, the order of the lines, and the stream of batches.

    lines of the training text  --difficulty-->  ordered lines  --join, cut-->  blocks of T + 1 tokens  -->  batches

Lines are joined in order, each followed by the end-of-text token, and cut into blocks of T + 1 tokens at stride T
(the last token of a block is the first of the next). What is left at the end and fills no batch is dropped.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data import Corpus

CHUNK = 1 << 16  # lines worked on at a time, so that memory does not grow with the corpus


def _positions(corpus: "Corpus", lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the tokens of `lines` stand in corpus.tokens, which line each belongs to, and its place in that line."""
    lengths = corpus.line_start[lines + 1] - corpus.line_start[lines]
    line = np.repeat(np.arange(len(lines)), lengths)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return corpus.line_start[lines][line] + place, line, place


def unigram_surprisal(corpus: "Corpus") -> np.ndarray:
    """-log p(token) in nats of every token of the vocabulary, (V,); p is its share of the training text.

    End-of-text tokens and speaker labels do not count; a token that never stands there has the surprisal of one that
    stands there once.
    """
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    for lines in np.array_split(corpus.train_lines(), max(1, len(corpus.train_lines()) // CHUNK)):
        where, line, place = _positions(corpus, lines)
        counted = corpus.tokens[where[place >= corpus.line_label[lines][line]]]
        counts += np.bincount(counted, minlength=corpus.vocab_size)
    counts[corpus.eot] = 0
    return -np.log(np.maximum(counts, 1) / counts.sum())


def bigram_entropy(tokens: np.ndarray, vocab_size: int, most: int = 1 << 24) -> float:
    """Entropy of a token given the one before it, nats per token: the loss of a bigram model on the text it counted.

    Counted on `most` evenly spaced pairs if there are more.
    """

    def entropy(symbols: np.ndarray) -> float:
        p = np.unique(symbols, return_counts=True)[1] / len(symbols)
        return float(-(p * np.log(p)).sum())

    step = -(-len(tokens) // most)
    first, second = tokens[:-1:step].astype(np.int64), tokens[1::step]
    return entropy(first * vocab_size + second) - entropy(first)


def difficulty(corpus: "Corpus", lines: np.ndarray, kind: str = "surprisal") -> np.ndarray:
    """One number per line, float64; larger is harder. Speaker labels do not count.

    kind: "surprisal", the unigram surprisal of the whole line in nats: short lines of frequent words are easy, long
    lines of rare words are hard; "length", the number of tokens; "rarity", the mean surprisal instead of the sum.
    """
    cost = np.ones(corpus.vocab_size) if kind == "length" else unigram_surprisal(corpus)
    cost[corpus.eot] = 0
    scores = []
    for some in np.array_split(lines, max(1, len(lines) // CHUNK)):
        where, line, place = _positions(corpus, some)
        counts = place >= corpus.line_label[some][line]
        sums = np.bincount(line, weights=cost[corpus.tokens[where]] * counts, minlength=len(some))
        if kind == "rarity":
            words = np.bincount(line, weights=counts, minlength=len(some)) - 1  # without the end-of-text token
            sums /= np.maximum(words, 1)
        scores.append(sums)
    return np.concatenate(scores)


def order_lines(corpus: "Corpus", order: str, kind: str, seed: int) -> np.ndarray:
    """The training lines in the order they are learnt in: "curriculum", easy to hard, or "random", shuffled once."""
    lines = corpus.train_lines()
    if order == "random":
        return np.random.default_rng(seed).permutation(lines)
    return lines[np.argsort(difficulty(corpus, lines, kind), kind="stable")]


def join(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """The tokens of `lines` in that order, uint16; every line ends with the end-of-text token."""
    parts = np.array_split(lines, max(1, len(lines) // CHUNK))
    return np.concatenate([corpus.tokens[_positions(corpus, part)[0]] for part in parts])


class Stream:
    """The batches of a run, and where the run stands among them.

    Batch b is always the same B blocks. An epoch visits each batch once: in order, or, with `reshuffle`, in an order
    drawn anew for every epoch. How often a visited batch is repeated is not decided here.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, reshuffle: bool = False, seed: int = 0):
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.n_batches = (len(tokens) - 1) // block_size // batch_size
        if self.n_batches < 1:
            raise ValueError(
                f"--block-size={block_size}: --batch-size={batch_size} such blocks need "
                f"{block_size * batch_size + 1:,} tokens, the training text has {len(tokens):,}; take smaller ones"
            )
        self.reshuffle, self.seed = reshuffle, seed
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to the `position`-th batch of `epoch`, both counted from 0. These two numbers are the stream's state."""
        self.epoch, self.position = epoch, position
        self.visits = np.arange(self.n_batches)
        if self.reshuffle:
            self.visits = np.random.default_rng([self.seed, epoch]).permutation(self.n_batches)

    def advance(self) -> None:
        """Go to the next batch, at the end of an epoch to the first of the next one."""
        if self.position + 1 < self.n_batches:
            self.position += 1
        else:
            self.seek(self.epoch + 1, 0)

    @property
    def batch(self) -> int:
        """The number of the current batch, its place in the order of the text."""
        return int(self.visits[self.position])

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the current batch, each (B, T), int64."""
        T, B = self.block_size, self.batch_size
        start = self.batch * B * T
        chunk = self.tokens[start : start + B * T + 1].astype(np.int64)
        return chunk[:-1].reshape(B, T), chunk[1:].reshape(B, T)


def validation_blocks(corpus: "Corpus", block_size: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (N, T), int64, of the held-out documents, in their own order.

    The target is -100 (does not count) in lines that also stand word for word in the training text, and in the padding
    of the last block. If there are more than `max_tokens`, evenly spaced blocks are taken. N = 0 without validation.
    """
    lines = corpus.val_lines()
    if not len(lines):
        return np.zeros((0, block_size), dtype=np.int64), np.zeros((0, block_size), dtype=np.int64)
    tokens = join(corpus, lines).astype(np.int64)
    lengths = corpus.line_start[lines + 1] - corpus.line_start[lines]
    targets = np.where(np.repeat(corpus.line_seen[lines], lengths), -100, tokens)
    n = -(-(len(tokens) - 1) // block_size)
    padding = n * block_size + 1 - len(tokens)
    tokens = np.pad(tokens, (0, padding), constant_values=corpus.eot)
    targets = np.pad(targets, (0, padding), constant_values=-100)
    x, y = tokens[:-1].reshape(n, block_size), targets[1:].reshape(n, block_size)
    chosen = np.linspace(0, n - 1, min(n, max(1, max_tokens // block_size))).astype(int)
    return x[chosen], y[chosen]
