"""The built-in corpus and its minimal pairs: reproducible, held out, balanced, and out of reach of n-gram models."""

import itertools
import random
import re
import subprocess
import sys
import time

import pytest

import toy
from tools import calibrate

BLIMP_FIELDS = {
    "sentence_good", "sentence_bad", "field", "linguistics_term", "UID", "pairID",
    "simple_LM_method", "one_prefix_method", "two_prefix_method", "lexically_identical",
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    return list(toy.documents())


@pytest.fixture(scope="module")
def lines(scenes):
    return [line for scene in scenes for line in scene]


@pytest.fixture(scope="module")
def pairs():
    return toy.minimal_pairs()


def sentences(pairs):
    return [pair[key] for rows in pairs.values() for pair in rows for key in ("sentence_good", "sentence_bad")]


def test_generation_is_quick_and_of_the_size_asked_for():
    start = time.perf_counter()
    written = sum(len(line.split()) for scene in toy.documents(seed=3) for line in scene)
    assert time.perf_counter() - start < 5
    assert 150_000 <= written < 151_000


def test_same_seed_gives_same_text_in_another_process():
    code = "import toy; print(list(toy.documents(1, 3000)), toy.minimal_pairs(8), toy.entity_items(8))"
    here = f"{list(toy.documents(1, 3000))} {toy.minimal_pairs(8)} {toy.entity_items(8)}\n"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == here


def test_seeds_of_text_and_pairs_are_separate():
    assert list(toy.documents(1, 3000)) != list(toy.documents(2, 3000))
    assert toy.minimal_pairs(8, seed=0) != toy.minimal_pairs(8, seed=1)
    assert toy.entity_items(8, seed=0) != toy.entity_items(8, seed=1)


def test_fewer_pairs_are_the_first_of_many(pairs):
    for uid, rows in toy.minimal_pairs(30).items():
        assert rows == pairs[uid][:30]


def test_scenes_are_short_and_cover_every_stage(scenes):
    assert all(4 <= len(scene) <= 12 and len(set(scene)) == len(scene) for scene in scenes)
    assert len(toy.STAGES) == len(toy.LINES) == len(toy.SHARES) == 10
    few = [line for scene in toy.documents(0, 3000) for line in scene]
    assert any(" contains " in line for line in few) and any(len(line.split()) == 2 for line in few)


def test_text_is_plain_english_spelling(lines, pairs):
    line_form = re.compile(r"[a-z]+( [a-z]+| ,)*( [.?]( [a-z]+( [a-z]+| ,)*)?)* [.?]")
    for text in itertools.chain(lines, sentences(pairs)):
        assert line_form.fullmatch(text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_stages_grow_in_mean_length():
    lengths = []
    for stage in range(len(toy.STAGES)):
        sample = toy.sample_lines(stage, 500)
        lengths.append(sum(len(line.split()) for line in sample) / len(sample))
    assert lengths == sorted(lengths)


def test_rare_words_come_late():
    early, late = (
        {word for line in toy.sample_lines(stage, 2000) for word in line.split()} & toy.LEMMAS.keys()
        for stage in (1, 6)
    )
    assert len(early) < 0.8 * len(late)


def test_pairs_have_the_fields_of_blimp(pairs):
    assert len(pairs) >= 12
    for uid, rows in pairs.items():
        assert [row["pairID"] for row in rows] == [str(i) for i in range(200)]
        for row in rows:
            assert row.keys() == BLIMP_FIELDS and row["UID"] == uid
            assert row["sentence_good"] != row["sentence_bad"]
        assert len({(row["sentence_good"], row["sentence_bad"]) for row in rows}) == 200


def test_no_test_sentence_stands_in_the_text(lines, pairs):
    text = set(lines) | {line for scene in toy.documents(seed=5, words=50_000) for line in scene}
    assert not text & set(sentences(pairs))
    stories = {line.partition(" now ")[0] for line in text if " now " in line}
    assert stories and not stories & {item["input_prefix"].partition(" now ")[0] for item in toy.entity_items()}


def test_every_word_of_the_tests_occurs_in_the_text(lines, pairs):
    known = {word for line in lines for word in line.split()}
    assert not {word for text in sentences(pairs) for word in text.split()} - known
    items = " ".join(item["input_prefix"] + "".join(item["options"]) for item in toy.entity_items())
    assert not set(items.split()) - known


def test_good_and_bad_have_equally_many_words(pairs):
    for rows in pairs.values():
        assert all(len(row["sentence_good"].split()) == len(row["sentence_bad"].split()) for row in rows)


def test_a_scorer_of_single_words_gets_exactly_half(pairs):
    r = random.Random(0)
    weight = {word: r.gauss(0, 1) for text in sentences(pairs) for word in text.split()}
    for rows in pairs.values():
        assert calibrate.accuracy(rows, lambda text: sum(weight[word] for word in text.split())) == 50


def test_what_is_good_in_one_pair_is_bad_in_its_twin(pairs):
    for rows in pairs.values():
        for one, twin in zip(rows[::2], rows[1::2], strict=True):
            assert changes(twin, "sentence_bad", "sentence_good") == changes(one, "sentence_good", "sentence_bad")


def changes(pair, before, after):
    words = zip(pair[before].split(), pair[after].split(), strict=True)
    return [(a, b) for a, b in words if a != b]


def test_ngram_models_fail_most_paradigms_and_pass_the_local_ones(lines):
    for order in (2, 3):
        scores = calibrate.ngram_scores(lines, order)
        assert sum(score <= 65 for score in scores.values()) >= 0.75 * len(scores)
        assert scores["determiner_noun"] > 90  # the calibration itself works: this one is a matter of two neighbours
    assert set(calibrate.ngram_scores(lines[:200], 1).values()) == {50}


def replay(story):
    """The content of each box after a story, from its words alone."""
    boxes = {}
    for line in story.split(" . "):
        line = line.removesuffix(" .")
        if found := re.fullmatch(r"(the \w+ \w+) contains (nothing|the \w+)", line):
            assert found[1] not in boxes
            boxes[found[1]] = found[2]
        elif found := re.fullmatch(r"\w+ puts (the \w+) in (the \w+ \w+)", line):
            assert boxes[found[2]] == "nothing" and found[1] not in boxes.values()
            boxes[found[2]] = found[1]
        elif found := re.fullmatch(r"\w+ moves (the \w+) from (the \w+ \w+) to (the \w+ \w+)", line):
            assert boxes[found[2]] == found[1] and boxes[found[3]] == "nothing"
            boxes[found[2]], boxes[found[3]] = "nothing", found[1]
        else:
            found = re.fullmatch(r"\w+ takes (the \w+) out of (the \w+ \w+)", line)
            assert boxes[found[2]] == found[1]
            boxes[found[2]] = "nothing"
    return boxes


def test_first_option_of_an_entity_item_is_what_the_story_says():
    items = toy.entity_items()
    assert len(items) == 200 and {item["numops"] for item in items} == {0, 1, 2, 3}
    assert sum(item["options"][0] == " nothing ." for item in items) == pytest.approx(50, abs=4)
    for item in items:
        story, _, question = item["input_prefix"].partition(" now ")
        assert story.count(" .") == 3 + item["numops"]
        assert item["options"][0] == f" {replay(story)[question.removesuffix(' contains')]} ."
        assert len(set(item["options"])) == 4


def test_stories_of_the_text_end_in_what_they_say():
    for line in toy.sample_lines(9, 100):
        story, _, ending = line.removesuffix(" .").partition(" now ")
        assert dict(part.split(" contains ") for part in re.split(" , | and ", ending)) == replay(story)


def test_wrong_flag_is_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--samples-of-what"])
    with pytest.raises(SystemExit) as stop:
        toy.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
