"""Readers against files, right and wrong; scorers and the bootstrap against what can be worked out by hand."""

import json
import math
import os
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


def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_no_text(encode, tmp_path):
    odd = '{"sentence_good": "a\u2028b\u0085c", "sentence_bad": "d"}\r\n'
    (tmp_path / "x.jsonl").write_bytes("\ufeff".encode() + (odd + PAIR).encode())
    records, items, _ = tasks.read("blimp", tmp_path, encode)
    assert len(records) == 2 and items[0][0] == encode("", "a\u2028b\u0085c")


def test_the_rules_of_the_two_years(encode, eval_files, tmp_path):
    (tmp_path / "x.jsonl").write_text(EWOK)
    both = {rules: tasks.read("ewok", tmp_path, encode, rules=rules)[1][0] for rules in ("2026", "2025")}
    assert both["2026"] == [encode("c1", " t1"), encode("c2", " t1")]
    assert both["2025"] == [encode("c1", " t1"), encode("c1", " t2")]
    new, old = (tasks.read("entity_tracking", eval_files, encode, rules=rules)[0] for rules in ("2026", "2025"))
    assert (len(new), len(old)) == (21, 42)


def test_global_piqa_is_scored_by_the_mean_over_tokens_and_the_label_comes_first(encode, tmp_path):
    (tmp_path / "x.jsonl").write_text(PIQA.replace('"label": 2', '"label": 1'))
    (record,), (candidates,), _ = tasks.read("global_piqa_nonparallel", tmp_path, encode)
    assert candidates == [encode("p", " b c d"), encode("p", " a")]
    assert record["tokens"] == [len(ids) - start for ids, start in candidates]


def test_groups_of_several_files_weigh_by_file():
    """Official: the mean over numbers of operations within each file, then over files."""
    right, wrong = {"scores": [-1.0, -2.0]}, {"scores": [-2.0, -1.0]}
    records = [{"group": f"a{i}", "file": "a", **right} for i in range(3)] + [{"group": "b0", "file": "b", **wrong}]
    assert tasks.accuracy("entity_tracking", records)[0].score == 50


def test_a_pipe_is_no_file_of_a_task(encode, tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(data.DataError, match="x.jsonl: not a file"):
        tasks.read("blimp", tmp_path, encode)


def test_real_files_are_read_in_whole(shared, encode):
    items = {"blimp": 67_000, "blimp_supplement": 5_218, "wug_adj": 200, "wug_past": 50, "reading": 1_726}
    for task, count in items.items():
        records, candidates, _ = tasks.read(task, shared / "eval", encode)
        assert len(records) == len(candidates) == count


PAIR = '{"sentence_good": "a", "sentence_bad": "b"}'
EWOK = '{"Domain": "d", "Context1": "c1", "Context2": "c2", "Target1": "t1", "Target2": "t2"}'
PIQA = '{"prompt": "p", "solution0": "a", "solution1": "b c d", "label": 2, "example_id": "i"}'
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
        ("blimp", PAIR + "\n" + "[" * 10**5, "line 2: not a whole JSON object, or one nested too deeply"),
        ("blimp", PAIR.replace("}", ', "UID": null}'), "line 1: no 'UID' there, or not a str"),
        ("blimp", (PAIR + "\n").encode() + b'{"sentence_good": "\xff"}', "line 2: 'utf-8' codec can't decode"),
        ("ewok", '{"Domain": "d", "Context1": "a", "Target1": "b"}', "line 1: no 'Context2' there"),
        ("global_piqa_parallel", PIQA, "line 1: 'label' must be below 2"),
        ("global_piqa_parallel", PIQA.replace("2", "true", 1).replace("b c d", "b").replace('"a"', "1"), "'solution0'"),
        ("entity_tracking", ITEM + '["nothing", "b"]}', "the rules of 2026 leave no item of entity_tracking"),
        ("wug_adj", '{"sentences": "a\\tb", "ratio": NaN}', "line 1: 'ratio' must be from 0 to 1"),
        ("comps", '{"prefix_acceptable": "a", "prefix_unacceptable": "b"}', "line 1: no 'property_phrase' there"),
        ("entity_tracking", ITEM + '["b"]}', "line 1: 'options' must be two or more strings"),
        ("entity_tracking", ITEM + '["b", 2]}', "line 1: 'options' must be two or more strings"),
        ("wug_adj", '{"sentences": "a", "ratio": 1}', "line 1: 'sentences' must be two or more"),
        ("wug_past", '{"sentences": "a\\tb", "ratio": "1"}', "line 1: no 'ratio' there, or not"),
        ("reading", None, "no reading_data.csv in it or in its folder reading"),
        ("reading", WORDS + "\n", "empty"),
        ("reading", "item,word\na,b\n", "line 2: no 'prev_item' there"),
        ("reading", b"item,word\na,\xff\n", "line 2: 'utf-8' codec can't decode"),
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
    low, high = tasks.interval([row.statistic(drawn) for drawn in tasks.draws(row.strata)], row.strata)
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


@pytest.mark.parametrize(("rules", "items", "percent"), [("2025", 9_483, 33.5), ("2026", 6_780, 16.5)])
def test_the_shortest_option_of_entity_tracking(shared, encode, rules, items, percent):
    """Why a model that has learnt nothing is far above guessing where an option is "nothing": docs/evaluation.md."""
    lengths = type("Lengths", (), {"__call__": lambda self, prefix, option: len(option)})()
    records, options, _ = tasks.read("entity_tracking", shared / "eval", lengths, rules=rules)
    for record, some in zip(records, options, strict=True):
        record["scores"] = [-float(length) for length in some]
    assert len(records) == items
    assert tasks.accuracy("entity_tracking", records)[0].score == pytest.approx(percent, abs=0.1)
