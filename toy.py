"""The built-in corpus: a small seeded grammar of English, and the minimal pairs that test what was learnt from it.

The text grows in ten stages as a child's language does, from single words to short stories of boxes. It is a measuring
instrument: a model of a million parameters learns it in minutes, while a model of neighbouring words cannot pass most
of its tests. `minimal_pairs` gives the tests in the format of BLiMP (Warstadt et al. 2020), `entity_items` gives
stories in the format of the BabyLM suite's entity tracking. None of their sentences stands in the text.

Text is lower case, and punctuation is set off by spaces, so that a word is always written the same way.

    python toy.py               a few lines of each stage, and a few pairs
    python toy.py --sample      thirty lines of each stage
    python toy.py --calibrate   how n-gram models score on each paradigm: chance is 50
"""

import argparse
import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------------------------------
# The lexicon. In each list the words stand in order of frequency; an irregular form follows its base after a slash.

STAGES = (
    "words",
    "phrases",
    "sentences",
    "questions",
    "reflexives",
    "negation",
    "agreement",
    "gaps",
    "clauses",
    "stories",
)
SHARES = (1, 4, 12, 10, 10, 14, 18, 14, 12, 16)  # of the words of the corpus, per stage, in relative units

NOUNS = {  # kind -> words; the kinds ending in _f and _m are female and male, and join the kind before the underscore
    "human_f": "girl mother woman/women sister queen grandmother princess aunt witch",
    "human_m": "boy father man/men brother king grandfather prince uncle wizard",
    "human": "child/children baby friend teacher farmer doctor neighbor baker sailor singer nurse soldier "
             "dancer driver pilot thief/thieves painter hunter student writer",
    "animal": "dog cat bird mouse/mice horse cow duck pig rabbit goose/geese frog bear fox wolf/wolves hen goat monkey "
              "lion snake puppy kitten tiger turtle donkey squirrel elephant owl spider ox/oxen dragon",
    "food": "apple cookie cake egg pear carrot berry/berries potato/potatoes cherry banana sandwich tomato/tomatoes "
            "nut pie bean plum onion peach loaf/loaves lemon mushroom pancake",
    "thing": "ball book key hat cup toy spoon stone shoe lamp chair bell knife/knives ring doll letter flower "
             "leaf/leaves candle coin picture clock drum pen rope feather button shirt bottle pencil glove umbrella "
             "mirror kite ribbon shell ticket hammer scarf/scarves pillow needle helmet",
}  # fmt: skip
NAMES = {"f": "anna mary lucy emma rosa julia clara nina", "m": "tom peter max jack ben paul oscar hugo"}
PLACES = ("in the house/in the garden/at school/in the kitchen/near the river/in the forest/on the hill/in the park/"
          "on the beach/in the field/behind the barn/at the market/by the lake/on the bridge/in the street/"
          "in the castle/in the village/on the island/in the yard/in the tower/near the station/in the cave").split("/")  # fmt: skip
CONTAINERS = "box bag basket bucket jar chest"

VERBS = {  # kind -> base forms, with the past where it is not regular
    "sleep": "sleep/slept run/ran sing/sang laugh cry swim/swam fall/fell smile dance wait sit/sat jump dream "
             "rest sneeze stumble/stumbled yawn shiver arrive wander tremble snore vanish kneel/knelt",
    "see": "see/saw like find/found love chase follow help want watch hear/heard touch miss hold/held catch/caught "
           "lose/lost push draw/drew carry/carried remember forget/forgot admire notice fear guard praise visit",
    "eat": "eat/ate cook bake taste steal/stole share slice",
    "take": "take/took make/made buy/bought break/broke throw/threw drop/dropped bring/brought sell/sold "
            "open clean fix lift paint hide/hid borrow mend wrap/wrapped polish",
    "wash": "see/saw wash hide/hid like draw/drew help watch hear/heard love admire scratch praise describe "
            "blame trust defend",
    "say": "say/said think/thought believe hope",  # that
    "know": "know/knew see/saw guess learn notice",  # that, or what
    "give": "give/gave show bring/brought sell/sold",
}  # fmt: skip
# Verbs that always need an object, and verbs that never have one: only these make the gap tests clear-cut English.
NEED = "find like love chase touch miss hold catch lose carry admire guard take buy throw bring fix borrow".split()
NEVER = "sleep laugh fall smile sit rest sneeze stumble yawn shiver arrive wander tremble snore vanish kneel".split()

ADJECTIVES = {
    "size": "big small old little new nice pretty strange huge tiny beautiful",
    "feeling": "happy hungry sad tired good angry brave clever kind lazy funny quiet lonely proud gentle shy noisy",
    "state": "dirty heavy broken cheap wet expensive round smooth dusty shiny ugly",
    "taste": "sweet fresh hot cold ripe sour bitter salty",
    "color": "red blue green yellow black white brown gray purple",
}
KIND_ADJECTIVES = {  # kind of noun -> kinds of adjective, in the order in which English puts them
    "human": ("size", "feeling"), "animal": ("size", "color"), "food": ("size", "taste"), "thing": ("size", "color"),
}  # fmt: skip
STATES = {"human": "feeling", "animal": "feeling", "food": "taste", "thing": "state"}  # "the key is (dirty)"
OTHER = {
    "near": "near behind beside with by".split(),
    "often": "often always sometimes usually rarely".split(),
    "quickly": "quickly quietly slowly happily carefully suddenly loudly gently".split(),
    "today": "today again outside alone".split(),
}
ONE = "the the the the the a a a this this every".split()
MANY = "the the the the the the these these some two many three".split()


class Noun(NamedTuple):
    singular: str
    plural: str
    gender: str  # "f", "m", "n" (animals and things) or "c" (common: a child, a farmer)
    kind: str


class Verb(NamedTuple):
    third: str  # index 0, beside a singular subject
    base: str  # index 1, beside a plural one
    past: str


class Phrase(NamedTuple):
    """A noun phrase: its words, number (0 singular, 1 plural), gender, and kind of noun."""

    text: str
    number: int
    gender: str
    kind: str


Words = dict[str, list]  # kind -> the words at hand
Pairs = list[tuple[str, str]]  # (good, bad)
BE, WAS, DO = ("is", "are"), ("was", "were"), ("does", "do")


def add_s(word: str) -> str:
    """The regular plural of a noun, which is also the regular third person of a verb."""
    if word.endswith(("s", "x", "ch", "sh", "zz")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeou" else word + "s"


def add_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if word.endswith("y") and word[-2] not in "aeou" else word + "ed"


def read_lexicon() -> Words:
    """All words by kind, as Noun, Verb or str, most frequent first."""
    words: Words = {"name": [], **OTHER, "place": PLACES, "container": CONTAINERS.split()}
    genders = {kind: dict.fromkeys(text.split(), kind[-1] if kind[-2] == "_" else "c") for kind, text in NOUNS.items()}
    humans = itertools.zip_longest(*(genders[kind] for kind in ("human_f", "human_m", "human")))
    order = {"human": [word for rank in humans for word in rank if word]}  # the three kinds in turn
    order |= {kind: NOUNS[kind].split() for kind in ("animal", "food", "thing")}
    sex = genders["human_f"] | genders["human_m"] | genders["human"]
    for kind, entries in order.items():
        split = [entry.partition("/") for entry in entries]
        words[kind] = [Noun(one, many or add_s(one), sex.get(one + bar + many, "n"), kind) for one, bar, many in split]
    for pair in zip(NAMES["f"].split(), NAMES["m"].split(), strict=True):
        words["name"] += [Noun(name, "", gender, "human") for name, gender in zip(pair, "fm", strict=True)]
    for kind, text in VERBS.items():
        split = [entry.partition("/") for entry in text.split()]
        words[kind] = [Verb(add_s(base), base, past or add_ed(base)) for base, _, past in split]
    return words | {kind: text.split() for kind, text in ADJECTIVES.items()}


LEXICON = read_lexicon()
LEMMAS = {form: n.singular for kind in ("name", "human", "animal", "food", "thing") for n in LEXICON[kind] for form in n[:2]}


def choose_words(r: random.Random, stage: int = 9) -> Words:
    """The few words that one scene is about, Zipf-like; rare words come in only at late stages."""
    sizes = {"name": 3, "human": 4, "animal": 4, "food": 3, "thing": 4, "place": 3}
    chosen = {}
    for kind, items in LEXICON.items():
        known = items[: math.ceil(len(items) * (stage + 3) / 7)]
        chosen[kind] = r.choices(known, cum_weights=zipf(len(known)), k=sizes.get(kind, 6))
    return chosen


@functools.cache
def zipf(n: int) -> list[float]:
    """Cumulative weights of n ranks, 1 / (rank + 6)."""
    return list(itertools.accumulate(1 / (rank + 6) for rank in range(n)))


# ---------------------------------------------------------------------------------------------------------------------
# Phrases. Every function draws from `r` and from the words at hand, `w`.


def noun_phrase(r: random.Random, w: Words, kinds: str = "human animal thing", number: int | None = None,
                det: str | None = None, extra: float = 0.0, adjectives: float = 0.3) -> Phrase:  # fmt: skip
    """A noun phrase of one of the kinds; with probability `extra` a prepositional phrase or relative clause follows."""
    kind = r.choice(kinds.split())
    noun = r.choice(w[kind])
    if kind == "name":
        return Phrase(noun.singular, 0, noun.gender, "human")
    number = r.randrange(2) if number is None else number
    before = [r.choice(w[k]) for k in KIND_ADJECTIVES[kind] if r.random() < adjectives / 2]
    det = det or r.choice((ONE, MANY)[number])
    words = " ".join([*before, noun[number]])
    text = f"{'an' if det == 'a' and words[0] in 'aeiou' else det} {words}"
    if r.random() < extra:
        text += " " + modifier(r, w, kind, number)
    return Phrase(text, number, noun.gender, kind)


def modifier(r: random.Random, w: Words, kind: str, number: int) -> str:
    """What follows a noun: "near the boys", "that chases the cats", "who the cats like"."""
    style = r.random()
    if style < 0.45:
        prep = r.choice(w["near"])
        if prep == "with" and kind not in ("human", "animal"):
            prep = "near"
        return f"{prep} {noun_phrase(r, w, 'thing' if prep == 'with' else 'human animal thing').text}"
    relative = "who" if kind == "human" else "that"
    if style < 0.72 and kind in ("human", "animal"):
        verb, rest = predicate(r, w, r.choice((True, True, False)))
        return f"{relative} {tensed(r, verb, number)} {rest}".rstrip()
    other = noun_phrase(r, w, "human human animal name", adjectives=0.1)
    verbs = w["see"] if kind in ("human", "animal") else w["eat" if kind == "food" else r.choice(("see", "take"))]
    return f"{relative} {other.text} {tensed(r, r.choice(verbs), other.number)}"


def tensed(r: random.Random, verb: Verb, number: int, past: float = 0.3) -> str:
    return verb.past if r.random() < past else verb[number]


def predicate(r: random.Random, w: Words, transitive: bool | None = None, extra: float = 0.0) -> tuple[Verb, str]:
    """A verb and what follows it: an object, a place, an adverb, or nothing."""
    if r.random() < 0.55 if transitive is None else transitive:
        kind = r.choice(("see", "see", "take", "eat"))
        objects = {"see": "human animal thing", "take": "thing", "eat": "food"}[kind]
        rest = noun_phrase(r, w, objects, extra=extra).text
        return r.choice(w[kind]), rest + (" " + r.choice(w["place"]) if r.random() < 0.15 else "")
    rest = r.choices((r.choice(w["place"]), r.choice(w["quickly"]), r.choice(w["today"]), ""), (4, 2, 1, 3))[0]
    return r.choice(w["sleep"]), rest


def finite(r: random.Random, w: Words, subject: Phrase, past: float = 0.3, extra: float = 0.0) -> str:
    """A verb phrase that agrees with the subject: "often sees a bird", "are hungry"."""
    style = r.random()
    if subject.kind in ("food", "thing") or style < 0.25:
        be = (WAS if r.random() < past else BE)[subject.number]
        return f"{be} {r.choice(w[STATES[subject.kind] if r.random() < 0.7 else 'place'])}"
    verb, rest = predicate(r, w, extra=extra)
    often = r.choice(w["often"]) + " " if r.random() < 0.15 else ""
    return f"{often}{tensed(r, verb, subject.number, past)} {rest}".rstrip()


def sentence(
    r: random.Random, w: Words, extra: float = 0.0, kinds: str = "human human animal animal name thing"
) -> str:
    subject = noun_phrase(r, w, kinds, extra=extra)
    return f"{subject.text} {finite(r, w, subject, extra=extra / 2)}"


def reflexive(phrase: Phrase) -> str:
    return "themselves" if phrase.number else {"f": "herself", "m": "himself", "n": "itself", "c": ""}[phrase.gender]


def pronoun(phrase: Phrase) -> str:
    return "they" if phrase.number else {"f": "she", "m": "he", "n": "it", "c": ""}[phrase.gender]


def animate(r: random.Random, w: Words, extra: float = 0.0) -> Phrase:
    """A person or an animal."""
    return noun_phrase(r, w, "human human animal name", extra=extra)


def gendered(r: random.Random, w: Words, extra: float = 0.0) -> Phrase:
    """A person or an animal whose pronoun is known: not "a child"."""
    return next(p for p in iter(lambda: animate(r, w, extra), None) if p.number or p.gender != "c")


# ---------------------------------------------------------------------------------------------------------------------
# The stages: each function gives one line.


def words_line(r: random.Random, w: Words) -> str:
    kind = r.choice("name human animal animal food thing thing sleep size color".split())
    word = r.choice(w[kind])
    if isinstance(word, Verb):
        word = word.base
    elif isinstance(word, Noun):
        word = word.plural if r.random() < 0.3 and kind != "name" else word.singular
    return f"{word} ."


def phrases_line(r: random.Random, w: Words) -> str:
    style = r.random()
    if style < 0.1:
        return f"{r.choice(w['place'])} ."
    phrase = noun_phrase(r, w, "human animal food thing", adjectives=0.1 if style < 0.4 else 1.0)
    more = f" and {noun_phrase(r, w, 'animal food thing', adjectives=0).text}" if style < 0.2 else ""
    return f"{phrase.text}{more} ."


def sentences_line(r: random.Random, w: Words) -> str:
    style = r.random()
    if style < 0.1:
        giver, taker = animate(r, w), animate(r, w)
        gift = noun_phrase(r, w, "food thing", adjectives=0.1).text
        verb = tensed(r, r.choice(w["give"]), giver.number)
        return f"{giver.text} {verb} " + (f"{taker.text} {gift} ." if style < 0.05 else f"{gift} to {taker.text} .")
    if style < 0.15:
        number = r.randrange(2)
        thing = noun_phrase(r, w, number=number, det=r.choice((("a",), ("two", "some", "many"))[number]))
        return f"there {BE[number]} {thing.text} {r.choice(w['place'])} ."
    return sentence(r, w) + " ."


def questions_line(r: random.Random, w: Words) -> str:
    subject = animate(r, w)
    if r.random() < 0.25:
        subject = noun_phrase(r, w, "human animal name thing food")
        be = r.choice((BE, BE, WAS))[subject.number]
        return f"{be} {subject.text} {r.choice((r.choice(w[STATES[subject.kind]]), r.choice(w['place'])))} ?"
    verb, rest = predicate(r, w)
    do = "did" if r.random() < 0.35 else DO[subject.number]
    answer = f" yes , {pronoun(subject)} {do} ." if r.random() < 0.2 and pronoun(subject) else ""
    return f"{do} {subject.text} {verb.base} {rest}".rstrip() + " ?" + answer


def reflexives_line(r: random.Random, w: Words) -> str:
    subject = gendered(r, w, extra=0.4)
    verb = tensed(r, r.choice(w["wash"]), subject.number, past=0.6)
    adverb = r.choice(("", "", r.choice(w["often"]) + " ", r.choice(w["quickly"]) + " "))
    object_ = reflexive(subject) if r.random() < 0.8 else animate(r, w).text
    return f"{subject.text} {adverb}{verb} {object_} " + r.choice(("", "", r.choice(w["place"]) + " ")) + "."


def negation_line(r: random.Random, w: Words) -> str:
    """Either a negated verb, or one of no/the with ever/never, any/no, in all the combinations that are English."""
    number, negative = r.randrange(2), r.random() < 0.5
    style = r.random()
    verb, rest = predicate(r, w, transitive=True if 0.3 < style < 0.6 else None)
    if style < 0.3:
        subject = animate(r, w)
        return (
            f"{subject.text} {'did' if r.random() < 0.3 else DO[subject.number]} not {verb.base} {rest}".rstrip() + " ."
        )
    plain = r.choice(("the", "the", "the", "some" if number else "this", "these" if number else "every"))
    subject = noun_phrase(r, w, "human human animal", number, "no" if negative else plain, adjectives=0.15)
    if style > 0.85:  # an inner "no" does not license what stands outside its clause
        inner = noun_phrase(r, w, "human animal", None, "the" if negative else "no", adjectives=0.1)
        after = (
            f"{'who' if subject.kind == 'human' else 'that'} {inner.text} {tensed(r, r.choice(w['see']), inner.number)}"
        )
    else:
        after = modifier(r, w, subject.kind, number) if r.random() < 0.6 else ""
    subject = f"{subject.text} {after}".strip()
    if style < 0.6:
        kind = r.choice(("see", "take", "eat"))
        some = r.choice(w[{"see": "animal", "take": "thing", "eat": "food"}[kind]]).plural
        ending = r.choice(("", "", " " + r.choice(w["place"])))
        verb = r.choice(w[kind])
        if r.random() < 0.25:
            return f"{animate(r, w).text} did not {verb.base} any {some}{ending} ."
        det = "any" if negative else r.choice(("no", "no", "some"))
        return f"{subject} {tensed(r, verb, number)} {det} {some}{ending} ."
    ever = "ever" if negative else r.choice(("never", "never", "never", r.choice(w["often"])))
    return f"{subject} {ever} {tensed(r, verb, number)} {rest}".rstrip() + " ."


def agreement_line(r: random.Random, w: Words) -> str:
    subject = noun_phrase(r, w, "human human animal animal thing food", extra=1.0, adjectives=0.2)
    return f"{subject.text} {finite(r, w, subject, past=0.1)} ."


def object_gap(r: random.Random, w: Words, gap: bool) -> tuple[str, Verb, str]:
    """The question word that fits ("what", "who"), a verb, and what follows it: with a gap, no object."""
    kind = r.choice(("see", "see", "take", "eat"))
    objects = {"see": r.choice(("human", "thing")), "take": "thing", "eat": "food"}[kind]
    rest = r.choice(w["place"] + w["today"]) if r.random() < 0.6 else ""
    if not gap:
        rest = f"{noun_phrase(r, w, objects).text} {rest}"
    return "who" if objects == "human" else "what", r.choice(w[kind]), rest.strip()


def gaps_line(r: random.Random, w: Words) -> str:
    style, gap = r.random(), r.random() < 0.5
    subject = noun_phrase(r, w, "human human animal name", extra=0.2)
    do = "did" if r.random() < 0.6 else DO[subject.number]
    who, verb, rest = object_gap(r, w, gap)
    if style < 0.35:
        return f"{who if gap else r.choice(('why', 'when'))} {do} {subject.text} {verb.base} {rest}".rstrip() + " ?"
    if style < 0.6:  # what was found, or that something was
        knower = noun_phrase(r, w, "human name", adjectives=0.1)
        know = tensed(r, r.choice(w["know"]), knower.number)
        past = f"{subject.text} {tensed(r, verb, subject.number, 0.7)}"
        return f"{knower.text} {know} {who if gap else 'that'} {past} {rest}".rstrip() + " ."
    verb, rest = predicate(r, w, r.choice((True, True, False)))
    if style < 0.8:  # the gap is the subject of an inner clause
        subject, say = noun_phrase(r, w, "human name"), r.choice(w["say"]).base
        inner = "" if gap else noun_phrase(r, w, "human human animal name", adjectives=0.1).text + " "
        return f"{'who' if gap else 'why'} did {subject.text} {say} {inner}{verb.past} {rest}".rstrip() + " ?"
    noun = r.choice(w["human"] + w["animal"])
    number = r.randrange(2)
    which = f"which {noun[number]}"
    if style < 0.9:
        return f"{r.choice((which, which, 'who'))} {verb.past} {rest}".rstrip() + " ?"
    return f"{which} {verb[number]} {rest}".rstrip() + " ?"


def clauses_line(r: random.Random, w: Words) -> str:
    style = r.random()
    if style < 0.35:  # a coordinated subject is plural
        one, two = (noun_phrase(r, w, "human animal name", extra=0.1, adjectives=0.15) for _ in range(2))
        both = Phrase(f"{one.text} and {two.text}", 1, "c", "human")
        return f"{both.text} {finite(r, w, both, past=0.15)} ."
    first, second = sentence(r, w, extra=0.25), sentence(r, w, extra=0.25)
    if style < 0.5:
        return f"{first} {r.choice(('and', 'but', 'and'))} {second} ."
    if style < 0.7:
        link = r.choice(("when", "because", "if", "while", "after"))
        return f"{link} {first} , {second} ." if r.random() < 0.6 else f"{first} {link} {second} ."
    if style < 0.85:
        subject = gendered(r, w, extra=0.3)
        again = Phrase(pronoun(subject), subject.number, subject.gender, subject.kind)
        link = r.choice(("because", "when", "and"))
        return f"{subject.text} {finite(r, w, subject)} {link} {again.text} {finite(r, w, again)} ."
    speaker = noun_phrase(r, w, "human name", extra=0.2)
    return f"{speaker.text} {tensed(r, r.choice(w['say']), speaker.number, 0.5)} that {first} ."


def story(r: random.Random, w: Words, operations: int) -> tuple[str, dict[str, str], list[str]]:
    """What happens to three boxes: the text, the content of each box at the end ("nothing"), the things mentioned.

    A box holds one thing at most. The number of operations (put, move, take out) is exact.
    """
    container = r.choice(w["container"])
    boxes = {f"the {color} {container}": "nothing" for color in r.sample(LEXICON["color"], 3)}
    things = [f"the {noun.singular}" for noun in r.sample(LEXICON["thing"], 3)]
    full = r.sample(list(boxes), 2)
    boxes |= zip(full, things, strict=False)
    seen = things[:2]
    lines = [f"{box} contains {content} ." for box, content in boxes.items()]
    for _ in range(operations):
        who = r.choice(w["name"]).singular
        free = [box for box, content in boxes.items() if content == "nothing"]
        full = [box for box in boxes if box not in free]
        outside = [thing for thing in things if thing not in boxes.values()]
        actions = ["put"] * bool(free and outside) + ["move", "move"] * bool(free and full) + ["take"] * bool(full)
        action = r.choice(actions)
        if action == "put":
            box, thing = r.choice(free), r.choice(outside)
            lines.append(f"{who} puts {thing} in {box} .")
            boxes[box] = thing
            seen += [thing] * (thing not in seen)
        elif action == "move":
            source, target = r.choice(full), r.choice(free)
            lines.append(f"{who} moves {boxes[source]} from {source} to {target} .")
            boxes[source], boxes[target] = "nothing", boxes[source]
        else:
            box = r.choice(full)
            lines.append(f"{who} takes {boxes[box]} out of {box} .")
            boxes[box] = "nothing"
    return " ".join(lines), boxes, seen + [thing for thing in things if thing not in seen]


def stories_line(r: random.Random, w: Words) -> str:
    text, boxes, _ = story(r, w, r.randrange(4))
    if text in held_out():
        return stories_line(r, w)
    one, two, three = (f"{box} contains {content}" for box, content in r.sample(list(boxes.items()), 3))
    return f"{text} now {one} , {two} and {three} ."


LINES = (words_line, phrases_line, sentences_line, questions_line, reflexives_line,
         negation_line, agreement_line, gaps_line, clauses_line, stories_line)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Scenes.


def one_line(r: random.Random, w: Words, stage: int) -> str:
    """A line of the stage that is not held out, and in which nobody meets themselves ("the dog chases the dogs")."""
    while True:
        line = LINES[stage](r, w)
        named = [LEMMAS[word] for word in line.split() if word in LEMMAS]
        if line not in held_out() and (len(set(named)) == len(named) or LINES[stage] is stories_line):
            return line


def scene(r: random.Random, stage: int) -> list[str]:
    """4 to 12 different lines of one stage (a few of the stage before), about the same few people and things."""
    w = choose_words(r, stage)
    lines: dict[str, None] = {}
    length = min(12, 4 + int(r.expovariate(0.25)))
    while len(lines) < length:
        lines[one_line(r, w, stage - (3 <= stage <= 8 and r.random() < 0.15))] = None
    return list(lines)


def documents(seed: int = 0, words: int = 150_000) -> Iterator[list[str]]:
    """Scenes of 4 to 12 lines, about `words` words and punctuation marks in all, the stages mixed by SHARES.

    The sentences of `minimal_pairs()` and the stories of `entity_items()`, both with their defaults, are left out.
    """
    r = random.Random(f"text {seed}")
    written = [0] * len(STAGES)
    while sum(written) < words:
        # the stage that is furthest behind its share comes next, which keeps the mixture even from start to end
        stage = min(range(len(STAGES)), key=lambda s: written[s] / SHARES[s])
        lines = scene(r, stage)
        written[stage] += sum(len(line.split()) for line in lines)
        yield lines


def sample_lines(stage: int, n: int, seed: int = 0) -> list[str]:
    """n lines of STAGES[stage] (stage counts from 0), each from a scene of its own."""
    r = random.Random(f"sample {stage} {seed}")
    return [one_line(r, choose_words(r, stage), stage) for _ in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# Minimal pairs. Every paradigm has two frames and two fillings of their gap "___": the first filling is right in the first
# frame only, the second in the second only. So each filling is right as often as it is wrong, whatever its frequency;
# and where the frames differ further away than a model of neighbouring words can see, it scores exactly 50 %.
# Slots: n, m are animate nouns (n0 singular, n1 plural, n either), v and see are verbs in the same way, end a predicate.

PARADIGMS = {  # BLiMP's linguistics_term and field -> UID -> two frames, two fillings
    ("subject_verb_agreement", "morphology"): {
        "agreement_simple": ("the {a} {n0} ___ .", "the {a} {n1} ___ .", "{end0}", "{end1}"),
        "agreement_irregular_plural": ("the {odd0} {often} ___ {p} .", "the {odd1} {often} ___ {p} .", "{v0}", "{v1}"),
        "agreement_across_pp": ("the {n0} {near} the {m} ___ .", "the {n1} {near} the {m} ___ .", "{end0}", "{end1}"),
        "agreement_across_subject_relative": (
            "the {n0} {who} {see0} the {m} ___ .", "the {n1} {who} {see1} the {m} ___ .", "{end0}", "{end1}"),
        "agreement_across_object_relative": (
            "the {n0} {who} the {m} {see_m} ___ .", "the {n1} {who} the {m} {see_m} ___ .", "{end0}", "{end1}"),
        "agreement_coordination": (
            "the {n0} {near} the {a} {m0} ___ .", "the {n0} and the {a} {m0} ___ .", "{end0}", "{end1}"),
        "question_auxiliary": ("___ the {a} {n0} {v1} {p} ?", "___ the {a} {n1} {v1} {p} ?", "does", "do"),
        "question_verb_form": (
            "the {a} {n0} ___ the {m} .", "does the {a} {n0} ___ the {m} ?", "{see0}", "{see1}"),
    },
    ("determiner_noun_agreement", "morphology"): {
        "determiner_noun": ("{name} {took} this ___ .", "{name} {took} these ___ .", "{thing0}", "{thing1}"),
        "determiner_noun_adjectives": (
            "{name} {took} this {a} {color} ___ .", "{name} {took} these {a} {color} ___ .", "{thing0}", "{thing1}"),
    },
    ("anaphor_agreement", "morphology"): {
        "anaphor_gender": ("the {a} {woman} {quickly} {washed} ___ .", "the {a} {man} {quickly} {washed} ___ .",
                           "herself", "himself"),
        "anaphor_number": ("the {a} {known0} {quickly} {washed} ___ .", "the {a} {known1} {quickly} {washed} ___ .",
                           "{self}", "themselves"),
    },
    ("binding", "syntax_semantics"): {
        "reflexive_c_command_gender": (
            "the {woman} {near} the {man} {washed} ___ .", "the {man} {near} the {woman} {washed} ___ .",
            "herself", "himself"),
        "reflexive_c_command_number": (
            "the {known0} {near} the {m1} {washed} ___ .", "the {known1} {near} the {m0} {washed} ___ .",
            "{self}", "themselves"),
    },
    ("npi_licensing", "semantics"): {
        "npi_ever": ("___ {n} {near} the {m} ever {v} {p} .", "___ {n} {near} the {m} never {v} {p} .", "no", "the"),
        "npi_any": ("___ {n} {p} {verb} any {objects} .", "___ {n} {p} {verb} no {objects} .", "no", "the"),
        "npi_scope": ("___ ever {v} {p} .", "___ never {v} {p} .",
                      "no {n} {who} the {m} {see_m}", "the {n} {who} no {m} {see_m}"),
    },
    ("filler_gap_dependency", "syntax"): {
        "gap_object_question": (
            "___ did the {a} {n} {find} {p} ?", "___ did the {a} {n} {find} the {thing0} {p} ?", "what", "why"),
        "gap_subject_question": (
            "___ did the {human} {say} {found} the {thing0} ?", "___ did the {human} {say} the {m0} {found} the {thing0} ?",
            "who", "why"),
        "gap_what_that": (
            "{name} {knew} ___ the {a} {n} {found} {p} .", "{name} {knew} ___ the {a} {n} {found} the {thing0} {p} .",
            "what", "that"),
    },
    ("argument_structure", "syntax"): {
        "transitivity": ("the {n} ___ {p} .", "the {n} ___ the {thing0} {p} .", "{slept}", "{found}"),
    },
}  # fmt: skip


def slots(r: random.Random, index: int) -> dict[str, str]:
    """Words for the slots of the frames. The number of m follows the index, so that as an attractor it is balanced."""
    w = choose_words(r)
    n, m = r.sample(sorted(set(w["human"] + w["animal"])), 2)
    number, m_number = r.randrange(2), index % 2
    odd = r.choice([n for kind in ("human", "animal") for n in LEXICON[kind] if n.plural != add_s(n.singular)])
    woman, man = (r.choice([n for n in LEXICON["human"] if n.gender == gender]) for gender in "fm")
    known = r.choice((woman, man, *w["animal"]))
    while known is m:
        known = r.choice(LEXICON["animal"])
    v, see, place = r.choice(w["sleep"]), r.choice(w["see"]), r.choice(w["place"])
    end = r.choice(([f"{form} {place}" for form in v], [f"{be} {r.choice(w['feeling'])}" for be in BE]))
    find = r.choice([verb for verb in LEXICON["see"] + LEXICON["take"] if verb.base in NEED])
    kind, objects = r.choice((("see", "thing"), ("take", "thing"), ("eat", "food")))
    thing = r.choice(w["thing"])
    plain = {kind: r.choice(w[kind]) for kind in ("often", "quickly", "color")}
    return plain | dict(
        n0=n[0], n1=n[1], n=n[number], m0=m[0], m1=m[1], m=m[m_number], v0=v[0], v1=v[1], v=v[number], p=place,
        see0=see[0], see1=see[1], see_m=see[m_number], end0=end[0], end1=end[1], odd0=odd[0], odd1=odd[1],
        who="who" if n.kind == "human" else "that", near=r.choice(("near", "behind", "beside", "by")),
        woman=woman.singular, man=man.singular, known0=known[0], known1=known[1],
        self=reflexive(Phrase("", 0, known.gender, "")), washed=r.choice(w["wash"]).past, took=r.choice(w["take"]).past,
        a=r.choice(w["size"]), name=r.choice(w["name"]).singular, human=r.choice(w["human"])[number],
        thing0=thing[0], thing1=thing[1], verb=r.choice(w[kind])[number], objects=r.choice(w[objects]).plural,
        find=find.base, found=find.past, say=r.choice(w["say"]).base, knew=r.choice(w["know"]).past,
        slept=r.choice([verb for verb in LEXICON["sleep"] if verb.base in NEVER]).past,
    )  # fmt: skip


def twins(r: random.Random, paradigm: tuple[str, str, str, str], index: int) -> Pairs:
    """The two (good, bad) pairs of a paradigm with the same words."""
    words = slots(r, index)
    frames, fillings = paradigm[:2], paradigm[2:]
    made = [[frame.replace("___", filling) for filling in fillings] for frame in frames]
    (a, b), (c, d) = [[text.format_map(words) for text in row] for row in made]
    return [(a, b), (d, c)]


def minimal_pairs(n: int = 200, seed: int = 0) -> dict[str, list[dict]]:
    """UID -> n minimal pairs in BLiMP's format; balanced if n is a multiple of 4. A smaller n gives the first of them.

    `documents` holds out the sentences of seed 0 up to n = 200; those of another seed may stand in the text.
    """
    result = {}
    table = [(uid, *key, texts) for key, group in PARADIGMS.items() for uid, texts in group.items()]
    for uid, term, field, texts in table:
        r = random.Random(f"pairs {uid} {seed}")
        pairs: Pairs = []
        seen: set[str] = set()
        while len(pairs) < n:
            new = twins(r, texts, len(pairs) // 2)
            sentences = {sentence for pair in new for sentence in pair}
            named = [LEMMAS[word] for word in new[0][0].split() if word in LEMMAS]
            if not sentences & seen and len(set(named)) == len(named):
                seen |= sentences
                pairs += new
        result[uid] = [
            dict(sentence_good=good, sentence_bad=bad, field=field, linguistics_term=term, UID=uid, pairID=str(i),
                 simple_LM_method=True, one_prefix_method=False, two_prefix_method=False,
                 lexically_identical=sorted(good.split()) == sorted(bad.split()))
            for i, (good, bad) in enumerate(pairs[:n])
        ]  # fmt: skip
    return result


def entity_items(n: int = 200, seed: int = 0) -> list[dict]:
    """n stories in the BabyLM format of entity tracking: `input_prefix`, four `options` (the first is right), `numops`.

    A candidate is `input_prefix` + option, as it stands: the option brings its own leading space. numops runs through
    0 to 3; each fourth answer is "nothing", so that every rule that looks at the options alone scores 25 %.
    """
    r = random.Random(f"entities {seed}")
    items, seen = [], set()
    while len(items) < n:
        operations, empty = len(items) % 4, len(items) // 4 % 4 == 0
        text, boxes, things = story(r, choose_words(r), operations)
        asked = [box for box, content in boxes.items() if (content == "nothing") == empty]
        if not asked or text in seen:
            continue
        seen.add(text)
        box = r.choice(asked)
        wrong = [option for option in [*things, "nothing"] if option != boxes[box]]
        options = [f" {option} ." for option in [boxes[box], *r.sample(wrong, 3)]]
        items.append(dict(input_prefix=f"{text} now {box} contains", options=options, numops=operations))
    return items


@functools.cache
def held_out() -> frozenset[str]:
    """The sentences of the pairs, and the stories (without their last sentence) of the entity items."""
    pairs = {pair[key] for uid in minimal_pairs().values() for pair in uid for key in ("sentence_good", "sentence_bad")}
    return frozenset(pairs | {item["input_prefix"].partition(" now ")[0] for item in entity_items()})


# ---------------------------------------------------------------------------------------------------------------------
# Calibration: what can be had from neighbouring words alone.


def count_ngrams(lines: list[str], order: int) -> Counter:
    """Counts of all n-grams up to the order, and of their contexts, over lines that start and end with "<s>"."""
    counts: Counter = Counter()
    for line in lines:
        words = ["<s>", *line.split(), "<s>"]
        for n in range(1, order + 1):
            counts.update(tuple(words[i : i + n]) for i in range(max(0, 2 - n), len(words) - n + 1))
    return counts


def log_probability(sentence: str, counts: Counter, order: int, total: int, k: float = 1.0) -> float:
    """Nats of a sentence and its end under an n-gram model that backs off: p = (c(h w) + k p(w | shorter h)) / (c(h) + k)."""
    words = ["<s>", *sentence.split(), "<s>"]
    sum_ = 0.0
    for i in range(1, len(words)):
        p = (counts[(words[i],)] + 1) / (total + len(counts))
        for n in range(2, min(order, i + 1) + 1):
            history = tuple(words[i - n + 1 : i])
            p = (counts[(*history, words[i])] + k * p) / (counts[history] + k)
        sum_ += math.log(p)
    return sum_


def accuracy(pairs: list[dict], score: Callable[[str], float]) -> float:
    """Per cent of the pairs in which the good sentence scores higher; a tie (to a billionth) counts one half."""
    gaps = [score(pair["sentence_good"]) - score(pair["sentence_bad"]) for pair in pairs]
    return 100 * sum(0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps) / len(gaps)


def ngram_scores(lines: list[str], orders: tuple[int, ...] = (1, 2, 3)) -> dict[str, list[float]]:
    """UID -> accuracy of the unigram, bigram and trigram model of the lines."""
    counts = count_ngrams(lines, max(orders))
    total = sum(count for gram, count in counts.items() if len(gram) == 1)
    return {
        uid: [accuracy(pairs, lambda s, order=order: log_probability(s, counts, order, total)) for order in orders]
        for uid, pairs in minimal_pairs().items()
    }


def print_calibration() -> None:
    scores = ngram_scores([line for lines in documents() for line in lines])
    print(f"{'paradigm':36}{'unigram':>9}{'bigram':>9}{'trigram':>9}")
    for uid, row in scores.items():
        print(f"{uid:36}" + "".join(f"{score:9.1f}" for score in row))
    means = [sum(column) / len(column) for column in zip(*scores.values(), strict=True)]
    print(f"{'mean':36}" + "".join(f"{score:9.1f}" for score in means))


def print_lines(n: int) -> None:
    for stage, name in enumerate(STAGES):
        print(f"\n{stage + 1}. {name}\n")
        print("\n".join(sample_lines(stage, n)))


def print_pairs() -> None:
    print("\nminimal pairs\n")
    for uid, pairs in minimal_pairs().items():
        for pair in pairs[:2]:
            print(f"{uid:36}{pair['sentence_good']}\n{'':34}* {pair['sentence_bad']}")
    item = entity_items()[2]
    print(f"\nentity tracking\n\n{item['input_prefix']} ... {' |'.join(item['options'])}")


def main() -> None:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sample", action="store_true", help="print thirty lines of each stage")
    what.add_argument("--calibrate", action="store_true", help="print the n-gram scores of each paradigm")
    args = parser.parse_args()
    if args.calibrate:
        print_calibration()
    elif args.sample:
        print_lines(30)
    else:
        print_lines(4)
        print_pairs()


if __name__ == "__main__":
    main()
