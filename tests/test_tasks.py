"""Readers against files, right and wrong; scorers and the bootstrap against what can be worked out by hand."""

import json
import math
import re
import sys
from collections import Counter

import numpy as np
import pytest

import data
import tasks


@pytest.fixture(scope="module")
def encode(text_file, cache):
    folder = data.prepare(str(text_file), cache, vocab_size=400, quiet=True)
    return tasks.Encoder(data.load_tokenizer(folder / "tokenizer.json"))


def test_a_token_counts_when_it_overlaps_the_completion():
    class OneTokenPerWord:  # "ab", " cd" and so on: a token holds the space before its word
        n_vocab = 3

        def encode_ordinary(self, text):
            return [{"ab": 0, " cd": 1, " ef": 2}[word] for word in re.findall(" ?[a-z]+", text)]

        def decode_single_token_bytes(self, i):
            return [b"ab", b" cd", b" ef"][i]

    encode = tasks.Encoder(OneTokenPerWord())
    assert encode("", "ab cd") == ([0, 1], 0)
    assert encode("ab", " cd") == ([0, 1], 1)
    assert encode("ab ", "cd") == ([0, 1], 1)  # " cd" reaches into the completion
    assert encode("a", "b cd") == ([0, 1], 0)
    assert encode("ab cd", "") == ([0, 1], 2)


def test_a_part_of_the_items_is_evenly_taken(encode, eval_files):
    records, items, digest = tasks.read("blimp", eval_files, encode)
    some = tasks.read("blimp", eval_files, encode, most=len(records) // 2)
    assert some[:2] == (records[::2], items[::2]) and some[2] != digest
    assert {record["group"] for record in some[0]} == {record["group"] for record in records}


def test_real_files_are_read_in_whole(shared, encode):
    items = {"blimp": 67_000, "blimp_supplement": 5_218, "wug_adj": 200, "wug_past": 50, "reading": 1_726}
    for task, count in items.items():
        records, candidates, _ = tasks.read(task, shared / "eval", encode)
        assert len(records) == len(candidates) == count


PAIR = '{"sentence_good": "a", "sentence_bad": "b"}'
ITEM = '{"input_prefix": "a", "numops": 0, "options": '
WORDS = "item,word,prev_item,prev_word,Subtlex_log10,length,context_length,prev_length,RTfirstfix,RTfirstpass,RTgopast,"


@pytest.mark.parametrize(
    ("task", "content", "wanted"),
    [
        ("blimp", PAIR + '\n{"sentence_good": "a"}\n', "x.jsonl, line 2: no 'sentence_bad' there"),
        ("blimp", PAIR + '\n{"sentence_good": "a", "sente', "x.jsonl, line 2: not a whole JSON object"),
        (
            "blimp",
            PAIR + '\n{"sentence_good": "a", "sentence_bad": 3}',
            "line 2: no 'sentence_bad' there, or not a str",
        ),
        ("blimp", PAIR + "\n\n" + PAIR, "line 2: not a whole JSON object"),
        ("blimp", "[1]", "line 1: no 'sentence_good' there"),
        ("blimp", "", "empty"),
        ("blimp", None, "no *.jsonl in it or in its folder blimp"),
        ("blimp_supplement", b'{"sentence_good": "\xff"}', "line 1: 'utf-8' codec can't decode"),
        ("ewok", '{"Domain": "d", "Context1": "a", "Target1": "b"}', "line 1: no 'Target2' there"),
        ("comps", '{"prefix_acceptable": "a", "prefix_unacceptable": "b"}', "line 1: no 'property_phrase' there"),
        ("entity_tracking", ITEM + '["b"]}', "line 1: 'options' must be two or more strings"),
        ("entity_tracking", ITEM + '["b", 2]}', "line 1: 'options' must be two or more strings"),
        ("wug_adj", '{"sentences": "a", "ratio": 1}', "line 1: 'sentences' must be two or more"),
        ("wug_past", '{"sentences": "a\\tb", "ratio": "1"}', "line 1: no 'ratio' there, or not"),
        ("reading", None, "no reading_data.csv in it or in its folder reading"),
        ("reading", WORDS + "\n", "empty"),
        ("reading", "item,word\na,b\n", "line 2: no 'prev_item' there"),
        (
            "reading",
            WORDS + "RTrightbound,self_paced_reading_time\na,b,,,1,1,x,1,1,1,1,1,1\n",
            "line 2: could not convert",
        ),
        ("reading", WORDS + "RTrightbound,self_paced_reading_time\na,b,,,1\n", "line 2: fewer fields"),
    ],
)
def test_bad_files_are_named_with_their_line(encode, tmp_path, task, content, wanted):
    if content is not None:
        file = tmp_path / ("reading_data.csv" if task == "reading" else "x.jsonl")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(data.DataError) as error:
        tasks.read(task, tmp_path, encode)
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_candidates_that_tie_share_the_credit():
    five = [{"group": "g", "scores": [-1.0, -1.0, -2.0, -1.0, -3.0]}, {"group": "g", "scores": [-2.0, -1.0, -1.0]}]
    row = tasks.accuracy("entity_tracking", five)[0]
    assert row.score == pytest.approx(100 / 6) and row.ties == 1


def test_a_package_that_a_task_needs_is_named_before_anything_is_scored(encode, eval_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)  # as if it were not installed
    with pytest.raises(data.DataError, match="wug_adj needs scipy; pip install scipy"):
        tasks.read("wug_adj", eval_files, encode)


def test_groups_weigh_the_same_whatever_their_size():
    right, wrong = {"scores": [-1.0, -2.0]}, {"scores": [-2.0, -1.0]}
    records = [{"group": "a", **right}] * 9 + [{"group": "b", **wrong}]
    row = tasks.accuracy("blimp", records)[0]
    assert row.score == 50 and {name: group["accuracy"] for name, group in row.groups.items()} == {"a": 100, "b": 0}


def test_the_bootstrap_covers_what_a_binomial_says():
    rng = np.random.default_rng(3)
    records = [{"group": "g", "scores": [float(right), 0.5]} for right in rng.random(400) < 0.6]
    row = tasks.accuracy("blimp", records)[0]
    low, high = tasks.interval([row.statistic(drawn) for drawn in tasks.draws(row.strata)])
    sigma = 100 * (0.6 * 0.4 / 400) ** 0.5
    assert 3.5 * sigma < high - low < 4.5 * sigma and low < row.score < high


def test_a_scorer_without_word_order_gets_one_half_on_permutations(shared):
    """Sums of log-probabilities of lower-case words: the pairs of 13 of BLiMP's paradigms are permutations."""
    halves = 0
    for file in sorted((shared / "eval" / "blimp").glob("*.jsonl")):
        pairs = [json.loads(line) for line in file.read_text().splitlines()]
        words = [[re.findall("[a-z']+", pair[s].lower()) for s in ("sentence_good", "sentence_bad")] for pair in pairs]
        counts = Counter(word for good, bad in words for word in good + bad)
        log_p = {word: math.log(count) for word, count in counts.items()}
        scores = [[math.fsum(log_p[word] for word in side) for side in pair] for pair in words]
        row = tasks.accuracy("blimp", [{"group": file.stem, "scores": pair} for pair in scores])[0]
        if all(sorted(good) == sorted(bad) for good, bad in words):
            halves += 1
            assert row.score == 50 and row.ties == len(pairs)
    assert halves == 13


def test_the_shortest_option_of_entity_tracking_is_right_more_often_than_a_guess(shared):
    """Why a model that has learnt nothing is far above the 20 % of guessing: README."""
    records = []
    for file in sorted((shared / "eval" / "entity_tracking").glob("*.jsonl")):
        for item in map(json.loads, file.read_text().splitlines()):
            scores = [-float(len(option)) for option in item["options"]]
            records.append({"group": f"{file.stem}_{item['numops']}", "scores": scores})
    assert tasks.accuracy("entity_tracking", records)[0].score == pytest.approx(33.5, abs=0.1)
