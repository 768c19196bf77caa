"""Difficulty, order, and the stream of batches of each regime."""

import itertools
import json
import math
import sys
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from conftest import corpus_of
from hypothesis import given, settings
from hypothesis import strategies as st

import curriculum
import data
import toy
import train
from flags import get_args, get_parser


@pytest.fixture
def corpus():
    # token 0 three times, 1 twice, 2 once in the training text; the last document is held out
    return corpus_of([[[2, 0], [0]], [[1, 0, 1]], [[2, 2, 2, 2], [0]]], vocab_size=5, held_out=[2], seen=[4])


def difficulty(corpus: data.Corpus, lines: np.ndarray, name: str = "surprisal") -> np.ndarray:
    return curriculum.DIFFICULTY[name][1](corpus, lines)


def test_difficulty_is_the_summed_unigram_surprisal(corpus):
    s = [-math.log(3 / 6), -math.log(2 / 6), -math.log(1 / 6)]
    lines = corpus.train_lines()
    assert list(lines) == [0, 1, 2]
    expected = [s[2] + s[0], s[0], 2 * s[1] + s[0]]
    np.testing.assert_allclose(difficulty(corpus, lines), expected)
    np.testing.assert_allclose(difficulty(corpus, lines, "rarity"), np.divide(expected, [2, 1, 3]))
    np.testing.assert_allclose(difficulty(corpus, lines, "length"), [2, 1, 3])


def test_the_loss_of_a_bigram_model_on_what_it_counted_is_the_entropy_of_a_token_given_the_one_before():
    entropy = partial(curriculum.bigram_loss, held_out=False)
    tokens = np.array([0, 1, 0, 2, 0, 1, 0, 2, 0], dtype=np.uint16)  # after 0 a fair coin, after 1 and 2 no choice
    assert entropy(tokens, 3) == pytest.approx(math.log(2) / 2)
    rng = np.random.default_rng(0)
    walk = rng.integers(0, 50, size=200_000).astype(np.uint16)  # independent tokens: the entropy of one of them
    assert entropy(walk, 50) == pytest.approx(math.log(50), abs=0.02)
    assert entropy(walk, 50, most=50_000) == pytest.approx(math.log(50), abs=0.06)


def test_the_loss_of_a_bigram_model_on_what_it_has_not_counted():
    """Witten and Bell's smoothing, pair by pair: a token's followers share what is left over by how common they are."""
    rng, V = np.random.default_rng(1), 30
    tokens = np.minimum(rng.geometric(0.2, size=1001), V).astype(np.uint16) - 1  # some of them never, some once
    pairs = [(int(a), int(b)) for a, b in itertools.pairwise(tokens)]
    held_out = [i for i in range(1000) if i // 10 % 10 == 9]
    counted = [pairs[i] for i in range(1000) if i // 10 % 10 != 9]
    pair, first, second = Counter(counted), Counter(a for a, _ in counted), Counter(b for _, b in counted)
    losses = []
    for a, b in (pairs[i] for i in held_out):
        p = (second[b] + len(second) / V) / (len(counted) + len(second))
        kinds = sum(1 for x, _ in pair if x == a)
        losses.append(-math.log((pair[a, b] + kinds * p) / (first[a] + kinds) if kinds else p))
    assert curriculum.bigram_loss(tokens, V) == pytest.approx(np.mean(losses))
    walk = rng.integers(0, 50, size=200_000).astype(np.uint16)
    assert curriculum.bigram_loss(walk, 50) == pytest.approx(math.log(50), abs=0.05)
    assert math.isfinite(curriculum.bigram_loss(tokens[:12], V))


def test_speaker_labels_do_not_count():
    plain = corpus_of([[[1, 2], [1]]], vocab_size=9)
    labelled = corpus_of([[[7, 8, 1, 2], [1]]], vocab_size=9, labels=[2, 0])
    for name in set(curriculum.DIFFICULTY) - {"composite"}:  # which needs a tokenizer: see below
        expected = difficulty(plain, plain.train_lines(), name)
        np.testing.assert_allclose(difficulty(labelled, labelled.train_lines(), name), expected)


@pytest.fixture
def spoken(tmp_path, monkeypatch):
    """Four lines, the last one with a label, and the words gnu and okapi as the only rare ones."""
    monkeypatch.setattr(curriculum, "is_rare", {"gnu", "okapi"}.__contains__)
    (tmp_path / "text.txt").write_text("The gnu.\n7, 8!\nA dog. The dog ran\n*MOT:\tThe okapi saw\u2026 the gnu\n")
    return data.open_prepared(data.prepare(str(tmp_path / "text.txt"), tmp_path / "cache", propose=300, quiet=True))


AGES = "Word\tOther\tRating.Mean\nthe\tx\t4\ngnu\tx\t10\nOkapi\tx\t13\nsaw\tx\tNA\nran\tx\t#N/A\ndog\tx\t2.5\n"


def test_composite_is_the_weighted_sum_of_five_z_scores(spoken, tmp_path, capsys):
    (tmp_path / "ages.tsv").write_text(AGES)
    lines = spoken.train_lines()
    words_per_sentence = [2, 0, 2.5, 5]
    types = [2 / math.sqrt(2), 0, 4 / math.sqrt(5), 4 / math.sqrt(5)]
    rare = [1 / 2, 0, 0, 2 / 5]
    mean, largest = [7, math.nan, 3, 31 / 4], [10, math.nan, 4, 13]  # "7, 8!" has no word, and counts as the mean

    def z(values: list[float]) -> np.ndarray:
        values = np.array(values)
        return np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values))

    three = 0.20 * z(words_per_sentence) + 0.15 * z(types) + 0.20 * z(rare)
    five = three + 0.20 * z(mean) + 0.05 * z(largest)
    np.testing.assert_allclose(curriculum.difficulty(spoken, lines, "composite", str(tmp_path / "ages.tsv")), five)
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(curriculum.difficulty(spoken, lines, "composite"), three)
    assert capsys.readouterr().err.count("without --aoa-file") == 1
    order = curriculum.order_lines(spoken, "curriculum", "composite", 0, aoa=str(tmp_path / "ages.tsv"))
    assert order.tolist() == np.argsort(five).tolist() and order[0] == 1
    assert (curriculum.composite(spoken, lines[[0, 0, 0]], str(tmp_path / "ages.tsv")) == 0).all()  # all constant


def test_ages_are_read_from_either_kind_of_table(tmp_path):
    file = tmp_path / "ages"
    for text in (AGES, AGES.replace("\t", ","), "\ufeffrating,word\r\n4,The\r\n10,gnu\r\n13,okapi\r\n2.5,dog\r\n"):
        file.write_text(text, newline="")
        assert curriculum.read_ages(str(file)) == {"the": 4, "gnu": 10, "okapi": 13, "dog": 2.5}


@pytest.mark.parametrize(
    "content", [b"", b"word,age\nthe,4\n", b"word,rating\n", b"word,rating\nthe,four\n", b"word,rating\nthe,inf\n",
                b"word;rating\nthe;4\n", b"word,rating\n\xff,4\n"]
)  # fmt: skip
def test_a_wrong_table_of_ages_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "ages").write_bytes(content)
    for file in (tmp_path / "ages", tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=f"^--aoa-file={file}: is no file of ages; it takes") as error:
            curriculum.read_ages(str(file))
        assert "\n" not in str(error.value)


def test_composite_names_the_package_that_it_misses_and_its_file_needs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(ValueError, match="^--difficulty=composite: .*pip install wordfreq$"):
        curriculum.is_rare.__wrapped__("dog")
    with pytest.raises(SystemExit):
        get_args(["--aoa-file=ages.csv"])
    assert "--aoa-file: nothing else reads it" in capsys.readouterr().err


def test_words_are_rare_below_once_in_a_million():
    pytest.importorskip("wordfreq")
    assert [*map(curriculum.is_rare, ("the", "dog", "don't", "okapi", "xyzzyq"))] == [False] * 3 + [True] * 2


def test_another_difficulty_is_one_entry_in_the_table(flags, tmp_path, monkeypatch):
    label = "its place in the text, the last line first"
    entry = (label, lambda corpus, lines: -lines.astype(float))
    monkeypatch.setitem(curriculum.DIFFICULTY, "place", entry)
    run = train.start(get_args([*flags, "--mode=curriculum", "--difficulty=place", f"--out={tmp_path / 'run'}"]))
    backwards = curriculum.join(run.corpus, run.corpus.train_lines()[::-1])
    assert (run.stream.tokens == backwards).all() and f"place: {label}" in " ".join(get_parser().format_help().split())


def test_curriculum_ascends_and_random_is_a_seeded_shuffle(corpus):
    assert list(curriculum.order_lines(corpus, "curriculum", "surprisal", seed=0)) == [1, 0, 2]
    many = corpus_of([[[0]] * 50], vocab_size=3)
    one, same, other = (curriculum.order_lines(many, "shuffled-once", "surprisal", seed) for seed in (1, 1, 2))
    assert sorted(one) == list(range(50)) and list(one) == list(same) and list(one) != list(other)


def test_the_shares_of_the_stages_are_tents_that_sum_to_one():
    tau = np.linspace(0, 1, 61)
    for K in (1, 2, 3, 4):
        shares = curriculum.stage_shares(tau, K)
        assert shares.shape == (61, K) and (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(
        curriculum.stage_shares([0, 0.25, 0.5, 1], 3), [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    )
    assert (np.diff(curriculum.stage_shares(tau, 4)[:, 0]) <= 0).all()  # the first declines, the last rises
    assert (np.diff(curriculum.stage_shares(tau, 4)[:, 3]) >= 0).all()


def staged(sizes: dict[int, int], seed: int = 0) -> data.Corpus:
    """Lines of 1 to 9 tokens, so many of each stage, in shuffled order; a line's tokens are their number."""
    rng = np.random.default_rng(seed)
    stage = rng.permutation(np.repeat([*sizes], [*sizes.values()]))
    corpus = corpus_of([[[n] * n] for n in rng.integers(1, 10, size=len(stage))], vocab_size=11)
    corpus.line_stage = stage.astype(np.uint8)
    return corpus


def test_stages_take_every_line_once_and_each_stage_goes_from_easy_to_hard():
    for sizes in ({1: 200, 2: 400, 4: 200}, {1: 5, 2: 800, 7: 1}, {3: 50}):
        corpus = staged(sizes)
        lines = curriculum.order_lines(corpus, "stages", "length", 0)
        assert sorted(lines) == list(range(len(corpus.line_stage)))
        for stage in sizes:
            assert (np.diff(difficulty(corpus, lines[corpus.line_stage[lines] == stage], "length")) >= 0).all()
    corpus.line_stage = None
    with pytest.raises(ValueError, match="^--order=stages: needs text in sub-folders named by stage.*has none$"):
        curriculum.order_lines(corpus, "stages", "length", 0)


def test_stages_come_and_go_as_their_tents_do():
    corpus = staged({1: 5000, 2: 10000, 4: 5000})  # as many as the areas of the tents ask for
    lines = curriculum.order_lines(corpus, "stages", "length", 0)
    lengths = np.diff(corpus.line_start)[lines]
    tau = (np.cumsum(lengths) - lengths / 2) / lengths.sum()
    expected = curriculum.stage_shares(np.arange(0.05, 1, 0.1), 3)
    for column, stage in enumerate((1, 2, 4)):
        tokens = np.histogram(tau, 10, (0, 1), weights=lengths * (corpus.line_stage[lines] == stage))[0]
        np.testing.assert_allclose(
            tokens / np.histogram(tau, 10, (0, 1), weights=lengths)[0], expected[:, column], atol=0.03
        )
    uneven = staged({1: 100, 2: 9000, 3: 900})  # the order stays early, middle, late whatever the sizes
    lines = curriculum.order_lines(uneven, "stages", "length", 0)
    first, second, third = (np.flatnonzero(uneven.line_stage[lines] == stage) for stage in (1, 2, 3))
    assert first.mean() < second.mean() < third.mean() and first.max() < third.min()
    assert first[0] == 0 and third[-1] == len(lines) - 1


def test_a_shift_shuffles_what_comes_before_it_and_what_comes_after():
    corpus, late = staged({1: 60, 2: 30, 4: 30}), curriculum.stages
    lines = curriculum.order_lines(corpus, "shift", "length", 0)
    assert sorted(lines) == list(range(120)) and set(corpus.line_stage[lines[:60]]) == {1}
    assert (np.diff(corpus.line_stage[lines].astype(int)) >= 0).all() and (np.diff(lines[60:90]) < 0).any()
    shorter = curriculum.order_lines(corpus, "shift", "length", 0, share=0.25)
    assert shorter.tolist() == [*lines[:15], *lines[60:]]
    corpus.line_stage = None
    lines, lengths = curriculum.order_lines(corpus, "shift", "length", 1), np.diff(corpus.line_start)
    first, n = lines[~late(corpus, "length")[lines]], (~late(corpus, "length")).sum()
    assert lines[:n].tolist() == first.tolist() and lengths[lines[:n]].max() < lengths[lines[n:]].min()
    assert 0.4 < lengths[lines[:n]].sum() / lengths.sum() < 0.6 and (np.diff(lengths[lines[:n]]) < 0).any()


def test_single_words_come_before_sentences(text_file, cache):
    prepared = data.open_prepared(data.prepare(str(text_file), cache, vocab_size=400, quiet=True))
    lines = curriculum.order_lines(prepared, "curriculum", "surprisal", seed=0)
    scores = difficulty(prepared, lines)
    assert (np.diff(scores) >= 0).all()
    tokenizer = data.load_tokenizer(prepared.folder / "tokenizer.json")
    words = []
    for line in lines:
        ids = prepared.tokens[prepared.line_start[line] : prepared.line_start[line + 1] - 1]
        words.append(len(tokenizer.decode(ids.tolist()).split()))
    tenth = len(words) // 10
    assert np.mean(words[:tenth]) < 3 < 10 < np.mean(words[-tenth:])


def test_joined_text_is_the_lines_in_order_with_end_of_text_after_each(corpus):
    assert list(curriculum.join(corpus, np.array([2, 1, 0]))) == [1, 0, 1, 4, 0, 4, 2, 0, 4]


def visits(stream: curriculum.Stream, n: int) -> list[int]:
    seen = []
    for _ in range(n):
        seen.append(stream.batch)
        stream.advance()
    return seen


def test_blocks_overlap_by_one_token_and_the_rest_is_dropped():
    tokens = np.arange(100, dtype=np.uint16)
    stream = curriculum.Stream(tokens, block_size=4, batch_size=3)  # 99 // 4 = 24 blocks, 8 batches of 12 tokens
    assert stream.n_batches == 8
    stream.seek(0, 7)
    x, y = stream.blocks()
    assert x.tolist() == [[84, 85, 86, 87], [88, 89, 90, 91], [92, 93, 94, 95]]
    assert (y == x + 1).all() and x.dtype == np.int64


@pytest.mark.parametrize(("length", "batches"), [(13, 1), (24, 1), (25, 2)])
def test_a_last_batch_that_just_fits_is_kept(length, batches):
    assert curriculum.Stream(np.zeros(length, dtype=np.uint16), 4, 3).n_batches == batches


def test_every_batch_once_an_epoch_in_order_or_reshuffled():
    tokens = np.zeros(61, dtype=np.uint16)
    ordered = curriculum.Stream(tokens, 3, 2)
    assert visits(ordered, 30) == 3 * list(range(10))
    shuffled = visits(curriculum.Stream(tokens, 3, 2, reshuffle=True, seed=5), 30)
    epochs = [shuffled[:10], shuffled[10:20], shuffled[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert shuffled == visits(curriculum.Stream(tokens, 3, 2, reshuffle=True, seed=5), 30)


@pytest.mark.parametrize("reshuffle", [False, True])
def test_a_stream_goes_on_where_another_one_stood(reshuffle):
    tokens = np.zeros(61, dtype=np.uint16)
    stream, other = (curriculum.Stream(tokens, 3, 2, reshuffle, seed=1) for _ in range(2))
    visits(stream, 17)
    other.seek(stream.epoch, stream.position)
    assert (stream.epoch, stream.position) == (1, 7)
    assert visits(other, 25) == visits(stream, 25)


@st.composite
def streams(draw) -> tuple:
    """The arguments of a stream of any sizes, at most some hundred batches; token i is number i."""
    T, B = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    length = draw(st.integers(T * B + 1, T * B * draw(st.integers(1, 60)) + T * B))
    return np.arange(length, dtype=np.uint16), T, B, draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(streams(), st.integers(1, 3))
def test_every_block_once_an_epoch_for_any_sizes(arguments, epochs):
    tokens, T, B, reshuffle, _ = arguments
    stream = curriculum.Stream(*arguments)
    n_blocks = (len(tokens) - 1) // T // B * B
    assert n_blocks == stream.n_batches * B and len(tokens) - 1 - n_blocks * T < T * B
    for epoch in range(epochs):
        starts = []
        for position in range(stream.n_batches):
            assert (stream.epoch, stream.position) == (epoch, position)
            x, y = stream.blocks()
            assert x.shape == y.shape == (B, T) and (y == x + 1).all()
            assert (x == x[:, :1] + np.arange(T)).all()  # a block is T tokens in a row
            starts += x[:, 0].tolist()
            stream.advance()
        assert sorted(starts) == list(range(0, n_blocks * T, T))
        assert reshuffle or starts == sorted(starts)


@settings(deadline=None)
@given(streams(), st.integers(0, 100), st.integers(0, 100))
def test_a_stream_of_any_sizes_goes_on_where_another_one_stood(arguments, before, after):
    stream, other = curriculum.Stream(*arguments), curriculum.Stream(*arguments)
    visits(stream, before)
    other.seek(stream.epoch, stream.position)
    assert visits(other, after) == visits(stream, after)
    assert (other.epoch, other.position) == (stream.epoch, stream.position) == divmod(before + after, stream.n_batches)


def test_text_shorter_than_a_batch_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"--block-size=64.*2,049 tokens.*100"):
        curriculum.Stream(np.zeros(100, dtype=np.uint16), 64, 32)


def test_validation_leaves_out_lines_that_also_stand_in_the_training_text(corpus):
    x, y = curriculum.validation_blocks(corpus, block_size=4, max_tokens=100)
    # held out: 2 2 2 2 eot 0 eot, where the line "0" was seen in training
    assert x.tolist() == [[2, 2, 2, 2], [4, 0, 4, 4]]
    assert y.tolist() == [[2, 2, 2, 4], [-100, -100, -100, -100]]
    assert len(curriculum.validation_blocks(corpus, block_size=4, max_tokens=4)[0]) == 1
    nothing = corpus_of([[[0]]], vocab_size=3)
    assert curriculum.validation_blocks(nothing, 4, 100)[0].shape == (0, 4)


def test_orders_two_million_tokens_fast():
    """A fiftieth of 100 M tokens: the whole is to take at most 60 s, most of it linear in the number of tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 21, size=200_000)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 16383, size=starts[-1]).astype(np.uint16)
    tokens[starts[1:] - 1] = 16383
    n = len(lengths)
    corpus = data.Corpus(None, tokens, starts, np.zeros(n, np.uint8), np.zeros(n, bool), np.array([0, n]),
                         np.zeros(1, bool), {"vocab_size": 16384, "eot": 16383}, None)  # fmt: skip
    began = time.perf_counter()
    ordered = curriculum.join(corpus, curriculum.order_lines(corpus, "curriculum", "surprisal", 0))
    assert time.perf_counter() - began < 5
    assert len(ordered) == len(tokens) and (np.bincount(ordered) == np.bincount(tokens)).all()


def test_the_toys_stages_are_ordered_by_difficulty(cache):
    """The order that the poster's idea asks for comes out of the surprisal alone: early stages first."""
    means = [np.mean([len(line.split()) for line in toy.sample_lines(stage, 50)]) for stage in range(3)]
    assert means[0] < means[1] < means[2]


def test_a_share_of_the_text_is_its_easy_lines_in_either_order():
    corpus = corpus_of([[[i] * (i + 1)] for i in range(9)], vocab_size=20)  # lines of 1, 2, ... tokens and end-of-text
    whole = curriculum.order_lines(corpus, "curriculum", "length", 0)
    assert whole.tolist() == list(range(9))
    for share, lines in ((1.0, 9), (0.5, 6), (0.1, 3), (0.01, 1)):  # 2, 5, 9, 14, 20, 27, ... of 54 tokens
        easy = curriculum.order_lines(corpus, "curriculum", "length", 0, share)
        assert easy.tolist() == list(range(lines))
        assert sorted(curriculum.order_lines(corpus, "random", "length", 0, share)) == list(range(lines))


def test_learn_focus_review_takes_all_then_the_hardest_then_all():
    tokens = np.arange(24 * 4 + 1, dtype=np.uint16)
    stream = curriculum.Stream(tokens, 4, 4, reshuffle=True, seed=3, focus=True)  # 6 batches of 4 blocks
    seen, epochs = [], []
    for _ in range(2 * (6 + 3 + 6)):
        rows = stream.rows
        x, y = stream.blocks()
        assert x[:, 0].tolist() == (4 * rows).tolist() and (y == x + 1).all()
        seen.append(rows.tolist())
        epochs.append((stream.epoch, stream.batch is None))
        stream.track(np.where(rows % 3 == 0, 5.0, 1.0) + rows / 100)  # every third block is hard
        stream.advance()
    assert [epochs.count((e, e % 3 == 1)) for e in range(6)] == [6, 3, 6, 6, 3, 6]
    hard = sorted(sum(seen[6:9], []))
    assert hard == sorted(sorted(range(24), key=lambda row: -(5 * (row % 3 == 0) + row / 100))[:12])
    assert sorted(sum(seen[:6], [])) == sorted(sum(seen[9:15], [])) == list(range(24))


def test_a_stream_goes_on_in_the_middle_of_a_focus():
    def rest(stream: curriculum.Stream, count: int) -> list:
        taken = []
        for _ in range(count):
            taken.append(stream.rows.tolist())
            stream.track(np.random.default_rng(len(taken)).random(4) + stream.rows)
            stream.advance()
        return taken

    tokens = np.arange(24 * 4 + 1, dtype=np.uint16)
    stream, other = (curriculum.Stream(tokens, 4, 4, True, 5, focus=True) for _ in range(2))
    rest(stream, 7)
    other.load_state(json.loads(json.dumps(stream.state())))
    assert rest(other, 20) == rest(stream, 20)


@pytest.mark.parametrize("reshuffle", [False, True])
def test_replayed_blocks_were_met_before_and_recent_ones_come_more_often(reshuffle):
    stream = curriculum.Stream(np.arange(40 * 4 + 1, dtype=np.uint16), 4, 4, reshuffle, seed=1)  # 10 batches
    assert (stream.replay(3, 1.0, 0) == stream.rows[:3]).all()  # nothing was met yet
    met = []
    for update in range(9):
        met.append(stream.batch)
        stream.advance()
        assert set(stream.replay(200, 0.0, update) // 4) == set(met)
    met.append(stream.batch)
    stream.advance()  # the second epoch: of all that was met, the current batch does not count
    drawn = stream.replay(60_000, 1.0, 0) // 4
    ago = [batch for batch in reversed(met) if batch != stream.batch]
    share = np.array([(drawn == batch).mean() for batch in ago])
    expected = 1 / np.arange(1, len(ago) + 1)
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.01)
    assert (stream.replay(50, 1.0, 7) == stream.replay(50, 1.0, 7)).all()
    assert (stream.replay(50, 1.0, 7) != stream.replay(50, 1.0, 8)).any()


def test_a_text_that_streams_by_does_not_come_back_but_from_the_buffer():
    stream = curriculum.Stream(np.arange(40 * 4 + 1, dtype=np.uint16), 4, 4, seed=1, once=True, buffer=6)
    buffers = []  # after every batch, the blocks that can be drawn
    for batch in range(10):
        assert stream.batch == batch and not stream.ended and stream.passes == batch / 10
        stream.advance()
        drawn = set(stream.replay(500, 0.0, batch))
        buffers.append(drawn)
        assert len(drawn) == min(6, 4 * (batch + 1)) and max(drawn) < 4 * (batch + 1)
    for before, after in itertools.pairwise(buffers):
        new = {block for block in after if block >= 4 * buffers.index(after)}
        assert after - new <= before  # what has left it does not come back
    drawn = []
    for _ in range(60):
        assert stream.ended and stream.batch is None and stream.passes == 1
        drawn.append(stream.rows)
        assert (stream.rows == drawn[-1]).all() and len(drawn[-1]) == 4
        assert (stream.blocks()[0][:, 0] == 4 * drawn[-1]).all()
        stream.advance()
    assert set(np.concatenate(drawn)) == buffers[-1]


def test_the_buffer_is_a_uniform_sample_and_without_one_the_last_batch_stays():
    kept = np.zeros(40)
    for seed in range(400):
        stream = curriculum.Stream(np.arange(40 * 4 + 1, dtype=np.uint16), 4, 4, seed=seed, once=True, buffer=6)
        stream.seek(1, 0)
        kept[list(set(stream.replay(200, 0.0, 0)))] += 1
    assert kept.sum() == 400 * 6 and abs(kept / 400 - 6 / 40).max() < 0.08  # 4.5 standard deviations
    stream = curriculum.Stream(np.arange(40 * 4 + 1, dtype=np.uint16), 4, 4, once=True, buffer=0)
    stream.seek(1, 3)
    assert stream.rows.tolist() == [36, 37, 38, 39]
