"""Which text comes when: the difficulty of a line, the order of the lines, and the stream of batches.

    lines of the training text  --difficulty-->  ordered lines  --join, cut-->  blocks of T + 1 tokens  -->  batches

Lines are joined in order, each followed by the end-of-text token, and cut into blocks of T + 1 tokens at stride T
(the last token of a block is the first of the next). What is left at the end and fills no batch is dropped.
"""

import csv
import math
import re
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data import Corpus

FOCUS = 0.5  # the share of the blocks that counts as the hardest in Learn-Focus-Review
CHUNK = 1 << 16  # lines worked on at a time, so that memory does not grow with the corpus
WEIGHTS = (0.20, 0.15, 0.20, 0.20, 0.05)  # of the composite difficulty's terms: the paper, Appendix C
RARE = 3.0  # wordfreq's Zipf frequency of a word that comes once in a million words
WORD, SENTENCE_END = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*"), re.compile(r"[.!?]+(?:\s|$)")


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


def bigram_loss(tokens: np.ndarray, vocab_size: int, held_out: bool = True, most: int = 1 << 24) -> float:
    """The loss of a bigram model, nats per token: on a tenth of the text, smoothed (Witten and Bell 1991) and counted
    on the rest; or, with `held_out` off, on the text that it counted. Of `most` evenly spaced pairs if there are more.
    """
    step = -(-len(tokens) // most)
    first, second = tokens[:-1:step].astype(np.int64), tokens[1::step].astype(np.int64)
    pairs, pair = np.unique(first * vocab_size + second, return_inverse=True)
    scored = (np.arange(len(pair)) * 100 // len(pair) % 10 == 9) | (not held_out)  # ten pieces of the text
    counted = ~scored | (not held_out)
    n = np.bincount(pair[counted], minlength=len(pairs))
    after = np.bincount(pairs[n > 0] // vocab_size, minlength=vocab_size) * held_out  # how many tokens follow a token
    total = np.bincount(first[counted], minlength=vocab_size) + after
    once = np.bincount(second[counted], minlength=vocab_size)
    p = (once + (once > 0).sum() / vocab_size) / (once.sum() + (once > 0).sum())  # of a token, whatever is before it
    smoothed = (n[pair] + after[first] * p[second]) / np.maximum(total, 1)[first]
    return float(-np.log(np.where(total[first] > 0, smoothed, p[second])[scored]).mean())


def summed(corpus: "Corpus", lines: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The summed cost (V,) of each line's tokens, and how many tokens those are; labels and end-of-text not counted."""
    cost[corpus.eot] = 0
    sums, counts = [], []
    for some in np.array_split(lines, max(1, len(lines) // CHUNK)):
        where, line, place = _positions(corpus, some)
        counted = place >= corpus.line_label[some][line]
        sums.append(np.bincount(line, weights=cost[corpus.tokens[where]] * counted, minlength=len(some)))
        counts.append(np.bincount(line, weights=counted, minlength=len(some)) - 1)
    return np.concatenate(sums), np.concatenate(counts)


def surprisal(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """The unigram surprisal of whole lines, nats: few frequent words are easy, many rare ones are hard."""
    return summed(corpus, lines, unigram_surprisal(corpus))[0]


def length(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """The number of tokens."""
    return summed(corpus, lines, np.ones(corpus.vocab_size))[0]


def rarity(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """The mean unigram surprisal of a line's tokens, nats."""
    sums, counts = summed(corpus, lines, unigram_surprisal(corpus))
    return sums / np.maximum(counts, 1)


def composite(corpus: "Corpus", lines: np.ndarray, aoa: str | None = None) -> np.ndarray:
    """The paper's score: the weighted sum of the z-scores, over these lines, of `features`.

    A line without any rated word has the mean of the others' ages; without a file both terms of age are left out.
    """
    if not aoa:
        print("curriculum: without --aoa-file, the composite score leaves out the age of acquisition", file=sys.stderr)
    score = np.zeros(len(lines))
    for weight, x in zip(WEIGHTS, features(corpus, lines, read_ages(aoa) if aoa else {}).T, strict=True):
        known = np.isfinite(x)
        if known.any() and (deviation := x[known].std()) > 1e-9:  # a constant does not count
            score[known] += weight * (x[known] - x[known].mean()) / deviation
    return score


def features(corpus: "Corpus", lines: np.ndarray, ages: dict[str, float]) -> np.ndarray:
    """Of each line, (N, 5): words per sentence, types / sqrt(words), share of rare words, mean and largest age or nan.

    Readings: the square root is that of the words, and a word is rare below once in a million words of wordfreq's.
    """
    import data

    encoding = data.load_tokenizer(corpus.folder / "tokenizer.json")
    x = np.empty((len(lines), 5))
    first, last = corpus.line_start[lines] + corpus.line_label[lines], corpus.line_start[lines + 1] - 1
    for row, start, end in zip(x, first, last, strict=True):
        text = encoding.decode(corpus.tokens[start:end].tolist()).lower().replace("\u2019", "'")
        words, sentences = WORD.findall(text), sum(bool(WORD.search(part)) for part in SENTENCE_END.split(text))
        n, rated = max(1, len(words)), [ages[word] for word in words if word in ages]
        row[:3] = len(words) / max(1, sentences), len(set(words)) / math.sqrt(n), sum(map(is_rare, words)) / n
        row[3:] = (sum(rated) / len(rated), max(rated)) if rated else math.nan
    return x


@cache
def is_rare(word: str) -> bool:
    """Is a word outside the lexicon? Raises ValueError without wordfreq, which brings it."""
    try:
        from wordfreq import zipf_frequency
    except ImportError:
        raise ValueError("--difficulty=composite: needs wordfreq's lexicon: pip install wordfreq") from None
    return zipf_frequency(word, "en") < RARE


def read_ages(file: str) -> dict[str, float]:
    """Ages of acquisition by word, from a table as Kuperman et al. (2012) published. ValueError if it is none."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as table:
            delimiter = "\t" if "\t" in table.readline() else ","
            table.seek(0)
            rows = csv.DictReader(table, delimiter=delimiter)
            word, age = ("Word", "Rating.Mean") if "Rating.Mean" in (rows.fieldnames or ()) else ("word", "rating")
            ages = {row[word].lower(): float(row[age]) for row in rows if row[age] not in ("", "NA", "#N/A", None)}
    except (OSError, KeyError, AttributeError, ValueError, csv.Error):
        ages = {}
    if not ages or not all(map(math.isfinite, ages.values())):
        raise ValueError(f"--aoa-file={file}: is no file of ages; it takes CSV or tab-separated text with columns Word "
                         "and Rating.Mean, or word and rating, and a number or NA for each word")  # fmt: skip
    return ages


# --difficulty: what it is called in figures and help, and a function of corpus and lines (N,) that gives a number for
# each line, float64; larger is harder. Another score is another entry.
DIFFICULTY = {
    "surprisal": ("unigram surprisal of the line, nats", surprisal),
    "length": ("length of the line, tokens", length),
    "rarity": ("mean unigram surprisal of its tokens, nats", rarity),
    "composite": ("the paper's score: sentence length, types, rare words and ages of acquisition", composite),
}


def difficulty(corpus: "Corpus", lines: np.ndarray, kind: str, aoa: str | None = None) -> np.ndarray:
    """The difficulty of each line, (N,); `aoa` is the file with ages of acquisition, which only composite reads."""
    score = DIFFICULTY[kind][1]
    return score(corpus, lines, aoa) if score is composite else score(corpus, lines)


def stages(corpus: "Corpus", kind: str, aoa: str | None = None) -> np.ndarray:
    """The stage of each line from 0 or, without stages, whether it is of the harder half of the tokens, (N,)."""
    if corpus.line_stage is not None:
        return corpus.line_stage - corpus.line_stage.min()
    score = difficulty(corpus, np.arange(len(corpus.line_seen)), kind, aoa)
    return score > np.median(np.repeat(score, np.diff(corpus.line_start)))


def order_lines(
    corpus: "Corpus", order: str, kind: str, seed: int, share: float = 1.0, aoa: str | None = None
) -> np.ndarray:
    """The training lines in the order they are learnt in: easy to hard, by stage, shifting, or shuffled.

    share: only the easiest lines, up to this share of the tokens; it is they that are shuffled.
    """
    if order == "stages" and corpus.line_stage is None:
        raise ValueError("--order=stages: needs text in sub-folders named by stage, such as 1-short and 2-medium; "
                         f"{corpus.folder} has none")  # fmt: skip
    lines = corpus.train_lines()
    if order == "shift":  # the share is that of the lines of the first stage
        lines, stage = np.random.default_rng(seed).permutation(lines), stages(corpus, kind, aoa)
        lines = lines[np.argsort(stage[lines], kind="stable")]
        first = np.sum(stage[lines] == 0)
        return np.concatenate((lines[: math.ceil(share * first)], lines[first:]))
    if order in ("curriculum", "stages") or share < 1:
        lines = lines[np.argsort(difficulty(corpus, lines, kind, aoa), kind="stable")]
        ends = np.cumsum(corpus.line_start[lines + 1] - corpus.line_start[lines])
        lines = lines[: np.searchsorted(ends, share * ends[-1]) + 1]
    if order == "stages":
        return mix_stages(corpus, lines)
    return np.random.default_rng(seed).permutation(lines) if order != "curriculum" else lines


def stage_shares(tau: np.ndarray, K: int) -> np.ndarray:
    """The shares of the stages at progress tau, (..., K): tents that sum to one; stage k peaks at k / (K - 1).

    A reading: the paper gives the shapes (early ones decline, the last rises) and no numbers.
    """
    return np.maximum(0, 1 - np.abs(np.asarray(tau)[..., None] * (K - 1) - np.arange(K)))


def mix_stages(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """Lines that go from easy to hard, mixed so that the stages come and go like `stage_shares`; each keeps its order.

    A line goes where the cumulative tent of its stage has reached the share of the stage's tokens before its middle.
    So no line is left over at the end, whatever the sizes; a large stage has more than its tent, and a small one less.
    """
    stage, lengths = corpus.line_stage[lines], corpus.line_start[lines + 1] - corpus.line_start[lines]
    tau, position, names = np.linspace(0, 1, 4097), np.empty(len(lines)), np.unique(stage)
    for name, cumulative in zip(names, np.cumsum(stage_shares(tau, len(names)), axis=0).T, strict=True):
        n = lengths[stage == name]
        position[stage == name] = np.interp((np.cumsum(n) - n / 2) / n.sum() * cumulative[-1], cumulative, tau)
    return lines[np.argsort(position, kind="stable")]


def join(corpus: "Corpus", lines: np.ndarray) -> np.ndarray:
    """The tokens of `lines` in that order, uint16; every line ends with the end-of-text token."""
    parts = np.array_split(lines, max(1, len(lines) // CHUNK))
    return np.concatenate([corpus.tokens[_positions(corpus, part)[0]] for part in parts])


def count_batches(n_tokens: int, block_size: int, batch_size: int) -> int:
    """How many batches of B blocks of T + 1 tokens, at stride T, a text of that many tokens fills."""
    return (n_tokens - 1) // block_size // batch_size


class Stream:
    """The batches of a run, and where the run stands among them.

    Batch b is always the same B blocks. An epoch visits each batch once: in order, or, with `reshuffle`, in an order
    drawn anew for every epoch. How often a visited batch is repeated is not decided here.

    With `focus`, epochs go Learn, Focus, Review and so on (Prakriya et al., arXiv 2409.06131): all batches; batches of
    the share FOCUS of the blocks whose tracked loss is the largest; all batches again.

    With `once` there is one epoch only, as when text streams by: a batch that was left does not come back. What follows
    the last one are batches drawn from the buffer. `buffer` is how many blocks of those met before are kept (None: all
    of them), a uniform sample at any time.
    """

    def __init__(
        self, tokens: np.ndarray, block_size: int, batch_size: int, reshuffle: bool = False, seed: int = 0,
        focus: bool = False, once: bool = False, buffer: int | None = None,
    ):  # fmt: skip
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.n_batches = count_batches(len(tokens), block_size, batch_size)
        if self.n_batches < 1:
            raise ValueError(
                f"--block-size={block_size}: --batch-size={batch_size} such blocks need "
                f"{block_size * batch_size + 1:,} tokens, the training text has {len(tokens):,}; take smaller ones"
            )
        self.reshuffle, self.seed, self.focus, self.once, self.buffer = reshuffle, seed, focus, once, buffer
        self.lot = np.random.default_rng([seed, 3]).permutation(self.n_batches * batch_size)
        # The loss of each block when it was last trained on; followed with `focus` only.
        self.losses = np.full(self.n_batches * batch_size if focus else 0, np.inf)
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to the `position`-th batch of `epoch`, both counted from 0. Without `focus` that is all its state."""
        self.epoch, self.position = epoch, position
        self.visits = self._visits(epoch)
        self.hardest = None
        if self.focus and epoch % 3 == 1:
            n = max(1, round(FOCUS * self.n_batches)) * self.batch_size
            hardest = np.argsort(-self.losses, kind="stable")[:n]
            self.hardest = np.random.default_rng([self.seed, epoch]).permutation(hardest).reshape(-1, self.batch_size)

    def state(self) -> dict:
        """Where the stream stands."""
        hardest = None if self.hardest is None else self.hardest.tolist()
        return {"epoch": self.epoch, "position": self.position, "losses": self.losses.tolist(), "hardest": hardest}

    def load_state(self, state: dict) -> None:
        """Go where `state` was taken."""
        self.losses = np.array(state["losses"])
        self.seek(state["epoch"], state["position"])
        self.hardest = None if state["hardest"] is None else np.array(state["hardest"])

    def _visits(self, epoch: int) -> np.ndarray:
        """The batches of an epoch in the order of their visits."""
        if self.once and epoch:
            return np.arange(0)
        if self.reshuffle:
            return np.random.default_rng([self.seed, epoch]).permutation(self.n_batches)
        return np.arange(self.n_batches)

    def advance(self) -> None:
        """Go to the next batch, at the end of an epoch to the first of the next one."""
        if self.ended or self.position + 1 < len(self.visits if self.hardest is None else self.hardest):
            self.position += 1
        else:
            self.seek(self.epoch + 1, 0)

    @property
    def ended(self) -> bool:
        """With `once`: has all of the text gone by?"""
        return self.once and self.epoch > 0

    @property
    def passes(self) -> float:
        """How often the text has gone by."""
        return 1.0 if self.ended else self.epoch + self.position / self.n_batches

    @property
    def batch(self) -> int | None:
        """The number of the current batch, its place in the order of the text; None for one of blocks drawn from it."""
        return None if self.ended or self.hardest is not None else int(self.visits[self.position])

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the current batch's blocks, (B,)."""
        if self.hardest is not None:
            return self.hardest[self.position]
        if self.ended:
            return self._draw(self.batch_size, 0.0, [self.seed, 2, self.position])
        return self._blocks_of(np.array([self.batch]))

    def blocks(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (B, T), int64, of the current batch, or of the blocks with the numbers `rows`."""
        rows = self.rows if rows is None else rows
        where = rows[:, None] * self.block_size + np.arange(self.block_size + 1)
        chunk = self.tokens[where].astype(np.int64)  # (B, T + 1)
        return chunk[:, :-1], chunk[:, 1:]

    def track(self, losses: np.ndarray) -> None:
        """Remember the losses of the current batch's blocks, (B,)."""
        self.losses[self.rows] = losses

    def replay(self, count: int, power: float, update: int) -> np.ndarray:
        """Numbers of `count` blocks of batches met before, or of those in the buffer; drawn anew for every update.

        A batch met k batches ago comes with a probability proportional to k^-power (0: all alike). Before any other
        has been met, blocks of the current batch.
        """
        return self._draw(count, power, [self.seed, 1, update])

    def _draw(self, count: int, power: float, seed: list[int]) -> np.ndarray:
        ago = self.visits[: self.position][::-1]
        if self.epoch:
            ago = np.concatenate((ago, self._visits(self.epoch - 1)[::-1]))
        _, first = np.unique(ago, return_index=True)
        met = ago[np.sort(first)].astype(int)  # the last one first
        met = met[met != self.batch] if len(met) > 1 else met
        kept, weights = self._blocks_of(met), np.repeat(np.arange(1.0, len(met) + 1) ** -power, self.batch_size)
        if self.buffer is not None:  # those with the lowest lots: what has left the buffer never comes back
            inside = np.argsort(self.lot[kept])[: self.buffer]
            kept, weights = kept[inside], weights[inside]
        if not len(kept):
            last = self.n_batches - 1 if self.batch is None else self.batch
            return self._blocks_of(np.array([last]))[:count]
        return np.random.default_rng(seed).choice(kept, size=count, p=weights / weights.sum())

    def _blocks_of(self, batches: np.ndarray) -> np.ndarray:
        """The numbers of the blocks of some batches."""
        return (batches[:, None] * self.batch_size + np.arange(self.batch_size)).ravel()


def validation_blocks(corpus: "Corpus", block_size: int, max_tokens: int = 65536) -> tuple[np.ndarray, np.ndarray]:
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
