"""The built-in corpus: a small seeded grammar of English, and the minimal pairs that test what was learnt from it.

The text grows in ten stages as a child's language does, from single words to short stories of boxes. It is a measuring
instrument: a model of a million parameters learns it in minutes, while a model of neighboring words cannot pass most
of its tests. `minimal_pairs` gives the tests in the format of BLiMP (Warstadt et al. 2020), `entity_items` gives
stories in the format of the BabyLM suite's entity tracking. None of their sentences stands in the text.

Text is lower case, and punctuation is set off by spaces, so that a word is always written the same way.

    python toy.py            a few lines of each stage, and a few pairs
    python toy.py --sample   thirty lines of each stage
"""

import argparse
import functools
import itertools
import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import terminal

# ---------------------------------------------------------------------------------------------------------------------
# The lexicon. In each list the words stand in order of frequency. An irregular form follows its base after a slash, the
# gender of a noun after a colon.

SHARES = {  # stage -> its share of the words of the corpus, in per cent
    "words": 1, "phrases": 4, "sentences": 11, "questions": 9, "reflexives": 9,
    "negation": 13, "agreement": 15, "gaps": 13, "clauses": 11, "stories": 14,
}  # fmt: skip
STAGES = tuple(SHARES)

NOUNS = {
    "name": "anna:f tom:m mary:f peter:m lucy:f max:m emma:f jack:m rosa:f ben:m julia:f paul:m clara:f oscar:m nina:f "
            "hugo:m",
    "human": "girl:f boy:m child/children mother:f father:m woman/women:f man/men:m baby friend sister:f brother:m "
             "teacher farmer queen:f king:m doctor neighbor grandmother:f grandfather:m baker sailor princess:f "
             "prince:m singer nurse aunt:f uncle:m soldier dancer driver witch:f wizard:m pilot thief/thieves painter "
             "hunter student writer",
    "animal": "dog cat bird mouse/mice horse cow duck pig rabbit goose/geese frog bear fox wolf/wolves hen goat monkey "
              "lion snake puppy kitten tiger turtle donkey squirrel elephant owl spider ox/oxen dragon",
    "food": "apple cookie cake egg pear carrot berry potato/potatoes cherry banana sandwich tomato/tomatoes nut pie "
            "bean plum onion peach loaf/loaves lemon mushroom pancake",
    "thing": "ball book key hat cup toy spoon stone shoe lamp chair bell knife/knives ring doll letter flower "
             "leaf/leaves candle coin picture clock drum pen rope feather button shirt bottle pencil glove umbrella "
             "mirror kite ribbon shell ticket hammer scarf/scarves pillow needle helmet",
}  # fmt: skip
VERBS = {
    "sleep": "sleep/slept run/ran sing/sang laugh cry swim/swam fall/fell smile dance wait sit/sat jump dream rest "
             "sneeze stumble yawn shiver arrive tremble snore vanish",
    "see": "see/saw like find/found love want watch hear/heard touch miss hold/held catch/caught lose/lost push "
           "draw/drew carry remember forget/forgot admire notice",  # anything
    "chase": "chase follow help meet/met fear visit hug praise",  # people and animals
    "eat": "eat/ate cook bake taste steal/stole share slice",  # food
    "take": "take/took make/made buy/bought break/broke throw/threw drop/dropped bring/brought sell/sold open clean "
            "fix lift paint hide/hid borrow mend",  # things
    "wash": "see/saw wash hide/hid like draw/drew help watch hear/heard love admire scratch praise describe blame "
            "trust defend",  # oneself
    "give": "give/gave show bring/brought sell/sold",
    "say": "say/said think/thought believe hope",  # that
    "know": "know/knew see/saw guess learn notice",  # that, or what
}  # fmt: skip
OTHERS = {
    "size": "big small old little new nice pretty strange huge tiny beautiful",
    "feeling": "happy hungry sad tired good angry brave clever kind lazy funny quiet lonely proud gentle shy noisy",
    "state": "dirty heavy broken cheap wet expensive round smooth dusty shiny ugly",
    "taste": "sweet fresh hot cold ripe sour bitter salty",
    "coat": "black brown white gray",
    "color": "red blue green yellow black white brown gray purple",
    "near": "near behind beside by with",
    "often": "often always sometimes usually rarely",
    "quickly": "quickly quietly slowly happily carefully suddenly loudly gently",
    "today": "today again outside alone",
    "container": "box bag basket bucket jar chest",
    "place": "in_the_house in_the_garden at_school in_the_kitchen near_the_river in_the_forest on_the_hill in_the_park "
             "on_the_beach in_the_field behind_the_barn at_the_market by_the_lake on_the_bridge in_the_street "
             "in_the_castle in_the_village on_the_island in_the_yard in_the_tower near_the_station in_the_cave",
}  # fmt: skip
ATTRIBUTES = {  # kind of noun -> kinds of adjective before it, in the order in which English puts them
    "human": ("size", "feeling"), "animal": ("size", "coat"), "food": ("size", "taste"), "thing": ("size", "color"),
}  # fmt: skip
STATES = {"human": "feeling", "animal": "feeling", "food": "taste", "thing": "state"}  # "the key is (dirty)"
DETERMINERS = (
    "the the the the the a a a this this every".split(),
    "the the the the the these these some two many".split(),
)
# Verbs that always need an object, and verbs that never have one: only these make the gap tests clear-cut English.
NEED = "find like love touch miss hold catch lose carry admire take buy throw bring fix borrow".split()
NEVER = "sleep laugh fall smile sit rest sneeze stumble yawn shiver arrive tremble snore vanish".split()


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
    """A noun phrase: its words, number (0 singular, 1 plural), and the gender and kind of its noun."""

    text: str
    number: int
    gender: str
    kind: str


Words = dict[str, list]  # kind -> the words at hand
BE, WAS, DO = ("is", "are"), ("was", "were"), ("does", "do")
HE, HIMSELF = {"f": "she", "m": "he", "n": "it"}, {"f": "herself", "m": "himself", "n": "itself"}


def add_ending(word: str, ending: str) -> str:
    """The regular form with "s" (of nouns and verbs alike) or "ed"."""
    if word.endswith("y") and word[-2] not in "aeou":
        return word[:-1] + ("ies" if ending == "s" else "ied")
    if ending == "s":
        return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
    return word + ("d" if word.endswith("e") else "ed")


def read_lexicon() -> Words:
    """All words by kind, as Noun, Verb or str, most frequent first."""
    words: Words = {kind: [word.replace("_", " ") for word in text.split()] for kind, text in OTHERS.items()}
    for kind, text in NOUNS.items():
        entries = [[*entry.split(":"), "c" if kind == "human" else "n"][:2] for entry in text.split()]
        split = [(*forms.partition("/")[::2], gender) for forms, gender in entries]
        words[kind] = [Noun(one, many or add_ending(one, "s"), gender, kind) for one, many, gender in split]
    for kind, text in VERBS.items():
        split = [entry.partition("/")[::2] for entry in text.split()]
        words[kind] = [Verb(add_ending(base, "s"), base, past or add_ending(base, "ed")) for base, past in split]
    return words


LEXICON = read_lexicon()
LEMMAS = {form: noun.singular for kind in NOUNS for noun in LEXICON[kind] for form in noun[:2]}
LEMMAS |= {form: verb.base for kind in VERBS for verb in LEXICON[kind] for form in verb}
LEMMAS |= {word: word for kind in OTHERS if kind not in ("near", "place", "container") for word in LEXICON[kind]}


def choose_words(r: Random, stage: int = 9) -> Words:
    """The few words that one scene is about, Zipf-like; rare words come in only at late stages."""
    chosen = {}
    for kind, items in LEXICON.items():
        known = items[: math.ceil(len(items) * (stage + 3) / 7)]
        chosen[kind] = r.choices(known, cum_weights=zipf(len(known)), k=4 if kind in NOUNS or kind == "place" else 6)
    return chosen


@functools.cache
def zipf(n: int) -> list[float]:
    """Cumulative weights of n ranks, 1 / (rank + 6): flat enough at the top for the rarest words to occur at all."""
    return list(itertools.accumulate(1 / (rank + 6) for rank in range(n)))


# ---------------------------------------------------------------------------------------------------------------------
# Phrases. Every function draws from `r` and from the words at hand, `w`; kinds repeated in a string come up more often.

ANIMATE = "human human animal name"


def noun_phrase(r: Random, w: Words, kinds: str = "human animal thing", number: int | None = None, *,
                det: str = "", extra: float = 0.0, adjectives: float = 0.15) -> Phrase:  # fmt: skip
    """A noun phrase of one of the kinds.

    `extra` is the probability that a prepositional phrase or relative clause follows, `adjectives` that of each of two.
    """
    kind = r.choice(kinds.split())
    noun = r.choice(w[kind])
    if kind == "name":
        return Phrase(noun.singular, 0, noun.gender, "human")
    number = r.randrange(2) if number is None else number
    det = det or r.choice(DETERMINERS[number])
    words = " ".join([*(r.choice(w[a]) for a in ATTRIBUTES[kind] if r.random() < adjectives), noun[number]])
    after = " " + modifier(r, w, kind, number) if r.random() < extra else ""
    return Phrase(f"{'an' if det == 'a' and words[0] in 'aeiou' else det} {words}{after}", number, noun.gender, kind)


def modifier(r: Random, w: Words, kind: str, number: int) -> str:
    """What follows a noun: "near the boys", "that chases the cats", "who the cats like"."""
    style = r.random()
    if style < 0.45:
        near = r.choice(w["near"])
        if near == "with":
            return f"with {noun_phrase(r, w, 'thing').text}"
        return f"{near} {noun_phrase(r, w).text}"
    if style < 0.72 and kind in ("human", "animal"):
        verb, rest = predicate(r, w, objects=r.random() < 0.7)
        return f"{relative(kind)} {tensed(r, verb, number)} {rest}".rstrip()
    other = noun_phrase(r, w, ANIMATE, adjectives=0.05)
    verbs = w[{"food": "eat", "thing": "take"}.get(kind, "chase")] + w["see"] * (kind != "food")
    return f"{relative(kind)} {other.text} {tensed(r, r.choice(verbs), other.number)}"


def relative(kind: str) -> str:
    return "who" if kind == "human" else "that"


def tensed(r: Random, verb: Verb, number: int, past: float = 0.3) -> str:
    return verb.past if r.random() < past else verb[number]


def transitive(r: Random, w: Words) -> tuple[Verb, str]:
    """A verb, and the kind of noun that makes sense as its object."""
    kind = r.choice("see see see chase take take eat".split())
    objects = {"see": "human animal thing", "chase": "human animal", "take": "thing", "eat": "food"}[kind]
    return r.choice(w[kind]), r.choice(objects.split())


def predicate(r: Random, w: Words, objects: bool | None = None, extra: float = 0.0) -> tuple[Verb, str]:
    """A verb and what follows it: an object, a place, an adverb, or nothing."""
    if r.random() < 0.55 if objects is None else objects:
        verb, kind = transitive(r, w)
        place = " " + r.choice(w["place"]) if r.random() < 0.15 else ""
        return verb, noun_phrase(r, w, kind, extra=extra).text + place
    rest = r.choices((r.choice(w["place"]), r.choice(w["quickly"]), r.choice(w["today"]), ""), (4, 2, 1, 3))[0]
    return r.choice(w["sleep"]), rest


def finite(r: Random, w: Words, subject: Phrase, past: float = 0.3, extra: float = 0.0) -> str:
    """A verb phrase that agrees with the subject: "often sees a bird", "are hungry"."""
    if subject.kind in ("food", "thing") or r.random() < 0.25:
        be = (WAS if r.random() < past else BE)[subject.number]
        return f"{be} {r.choice(w[STATES[subject.kind] if r.random() < 0.7 else 'place'])}"
    verb, rest = predicate(r, w, extra=extra)
    often = r.choice(w["often"]) + " " if r.random() < 0.15 else ""
    return f"{often}{tensed(r, verb, subject.number, past)} {rest}".rstrip()


def sentence(r: Random, w: Words, extra: float = 0.0, past: float = 0.3) -> str:
    subject = noun_phrase(r, w, "human human animal animal name thing", extra=extra)
    return f"{subject.text} {finite(r, w, subject, past, extra / 2)}"


def with_pronoun(r: Random, w: Words, extra: float = 0.0) -> Phrase:
    """A person or animal to whom a pronoun can refer back: not "a child"."""
    while True:
        phrase = noun_phrase(r, w, ANIMATE, extra=extra)
        if phrase.number or phrase.gender in HE:
            return phrase


# ---------------------------------------------------------------------------------------------------------------------
# The stages: each function gives one line.


def words_line(r: Random, w: Words) -> str:
    word = r.choice(w[r.choice("name human animal animal food thing thing sleep size color".split())])
    if isinstance(word, Noun):
        word = word.plural if r.random() < 0.3 and word.kind != "name" else word.singular
    return f"{word.base if isinstance(word, Verb) else word} ."


def phrases_line(r: Random, w: Words) -> str:
    style = r.random()
    if style < 0.1:
        return f"{r.choice(w['place'])} ."
    phrase = noun_phrase(r, w, "human animal food thing", adjectives=0.05 if style < 0.4 else 0.5)
    more = f" and {noun_phrase(r, w, 'animal food thing', adjectives=0).text}" if style < 0.2 else ""
    return f"{phrase.text}{more} ."


def sentences_line(r: Random, w: Words) -> str:
    style = r.random()
    if style < 0.1:
        giver, taker = noun_phrase(r, w, ANIMATE), noun_phrase(r, w, ANIMATE)
        gift = noun_phrase(r, w, "food thing", adjectives=0.05)
        verb = tensed(r, r.choice(w["give"]), giver.number)
        objects = f"{taker.text} {gift.text}" if style < 0.05 else f"{gift.text} to {taker.text}"
        return f"{giver.text} {verb} {objects} ."
    if style < 0.15:
        number = r.randrange(2)
        thing = noun_phrase(r, w, number=number, det=r.choice((("a",), ("two", "some", "many"))[number]))
        return f"there {BE[number]} {thing.text} {r.choice(w['place'])} ."
    return sentence(r, w) + " ."


def questions_line(r: Random, w: Words) -> str:
    if r.random() < 0.25:
        subject = noun_phrase(r, w, "human animal name thing food")
        be = r.choice((BE, BE, WAS))[subject.number]
        return f"{be} {subject.text} {r.choice(w[r.choice((STATES[subject.kind], 'place'))])} ?"
    subject = with_pronoun(r, w)
    verb, rest = predicate(r, w)
    do = "did" if r.random() < 0.35 else DO[subject.number]
    he = "they" if subject.number else HE[subject.gender]
    answer = f" yes , {he} {do} ." if r.random() < 0.15 else ""
    return f"{do} {subject.text} {verb.base} {rest}".rstrip() + f" ?{answer}"


def reflexives_line(r: Random, w: Words) -> str:
    subject = with_pronoun(r, w, extra=0.4)
    verb = tensed(r, r.choice(w["wash"]), subject.number, past=0.6)
    adverb = r.choice(("", "", r.choice(w["often"]) + " ", r.choice(w["quickly"]) + " "))
    himself = "themselves" if subject.number else HIMSELF[subject.gender]
    who = himself if r.random() < 0.8 else noun_phrase(r, w, ANIMATE).text
    return f"{subject.text} {adverb}{verb} {who} " + r.choice(("", "", r.choice(w["place"]) + " ")) + "."


def negation_line(r: Random, w: Words) -> str:
    """A negated verb; or no/the with ever/never or with any/no, in all the combinations that are English."""
    style, number, negative = r.random(), r.randrange(2), r.random() < 0.5
    verb, rest = predicate(r, w)
    if style < 0.3:
        subject = noun_phrase(r, w, ANIMATE)
        do = "did" if r.random() < 0.4 else DO[subject.number]
        some = f"any {r.choice(w['thing']).plural} {r.choice(('', r.choice(w['place'])))}"
        verb, rest = (r.choice(w["take"]), some) if r.random() < 0.25 else (verb, rest)
        return f"{subject.text} {do} not {verb.base} {rest}".rstrip() + " ."
    plain = r.choice(("the", "the", *(("this", "every"), ("these", "some", "many", "two"))[number]))
    subject = noun_phrase(r, w, "human human animal", number, det="no" if negative else plain, adjectives=0.08)
    after = modifier(r, w, subject.kind, number) if r.random() < 0.6 else ""
    if style > 0.85:  # a "no" inside the relative clause does not license anything outside
        inner = noun_phrase(r, w, "human animal", det="the" if negative else "no", adjectives=0.05)
        after = f"{relative(subject.kind)} {inner.text} {tensed(r, r.choice(w['see']), inner.number)}"
    if style < 0.55:
        verb, kind = transitive(r, w)
        det = "any" if negative else r.choice(("no", "no", "some"))
        rest = f"{det} {r.choice(w[kind]).plural} {r.choice(('', '', r.choice(w['place'])))}"
        ever = ""
    else:
        ever = "ever " if negative else r.choice(("never", "never", "never", r.choice(w["often"]))) + " "
    return f"{f'{subject.text} {after}'.strip()} {ever}{tensed(r, verb, number)} {rest}".rstrip() + " ."


def agreement_line(r: Random, w: Words) -> str:
    subject = noun_phrase(r, w, "human human animal animal thing food", extra=1.0, adjectives=0.1)
    return f"{subject.text} {finite(r, w, subject, past=0.1)} ."


def gaps_line(r: Random, w: Words) -> str:
    """Questions and indirect questions with a gap, and beside each its like without one."""
    style, gap = r.random(), r.random() < 0.5
    subject = noun_phrase(r, w, ANIMATE, extra=0.5)
    if style < 0.65:  # the gap is the object
        verb, kind = transitive(r, w)
        what = "who" if kind in ("human", "animal") else "what"
        thing = "" if gap else noun_phrase(r, w, kind).text + " "
        rest = thing + r.choice(("", r.choice(w["place"]), r.choice(w["place"]), r.choice(w["today"])))
        if style < 0.4:
            do = "did" if r.random() < 0.6 else DO[subject.number]
            why = what if gap else r.choice(("why", "why", "when"))
            return f"{why} {do} {subject.text} {verb.base} {rest}".rstrip() + " ?"
        knower = noun_phrase(r, w, "human name", adjectives=0.05)
        knows = tensed(r, r.choice(w["know"]), knower.number)
        verb = tensed(r, verb, subject.number, past=0.7)
        return f"{knower.text} {knows} {what if gap else 'that'} {subject.text} {verb} {rest}".rstrip() + " ."
    verb, rest = predicate(r, w, objects=r.random() < 0.7)
    if style < 0.85:  # the gap is the subject of an inner clause
        speaker, say = noun_phrase(r, w, "human name", extra=0.2), r.choice(w["say"]).base
        inner = "" if gap else subject.text + " "
        return f"{'who' if gap else 'why'} did {speaker.text} {say} {inner}{verb.past} {rest}".rstrip() + " ?"
    number = r.randrange(2)
    which = f"which {r.choice(w['human'] + w['animal'])[number]} "
    start = f"who {verb.past}" if style < 0.88 else which + modifier(r, w, "animal", number) + " " + verb[number]
    return f"{start} {rest}".rstrip() + " ?"


def clauses_line(r: Random, w: Words) -> str:
    style, past = r.random(), r.choice((0, 0, 1))  # one tense for both clauses
    if style < 0.35:  # a coordinated subject is plural
        one, two = (noun_phrase(r, w, "human animal name", extra=0.2, adjectives=0.1) for _ in range(2))
        return f"{one.text} and {two.text} {finite(r, w, Phrase('', 1, 'c', 'human'), past=0.15, extra=0.2)} ."
    first, second = sentence(r, w, 0.25, past), sentence(r, w, 0.25, past)
    if style < 0.5:
        return f"{first} {r.choice(('and', 'but'))} {second} ."
    if style < 0.7:
        link = r.choice(("when", "because", "if", "while", "after"))
        return f"{link} {first} , {second} ." if r.random() < 0.6 else f"{first} {link} {second} ."
    if style < 0.85:
        subject = with_pronoun(r, w, extra=0.3)
        he = "they" if subject.number else HE[subject.gender]
        link = r.choice(("because", "when", "and"))
        return f"{subject.text} {finite(r, w, subject, past)} {link} {he} {finite(r, w, subject, past)} ."
    speaker = noun_phrase(r, w, "human name", extra=0.2)
    return f"{speaker.text} {tensed(r, r.choice(w['say']), speaker.number, past)} that {first} ."


def story(r: Random, w: Words, operations: int) -> tuple[str, dict[str, str], list[str]]:
    """What happens to three boxes: the text, the content of each box at the end ("nothing" if empty), three things.

    A box holds one thing at most. Each of the operations puts a thing in, moves it or takes it out.
    """
    container = r.choice(w["container"])
    names = [f"the {color} {container}" for color in r.sample(LEXICON["color"], 3)]
    things = [f"the {noun.singular}" for noun in r.sample(LEXICON["thing"], 3)]
    boxes = dict(zip(names, r.sample([*things[:2], "nothing"], 3), strict=True))
    lines = [f"{box} contains {content} ." for box, content in boxes.items()]
    for _ in range(operations):
        who = r.choice(w["name"]).singular
        full = [box for box in names if boxes[box] != "nothing"]
        free = [box for box in names if boxes[box] == "nothing"]
        outside = [thing for thing in things if thing not in boxes.values()]
        actions = ["put"] * bool(free and outside) + ["move"] * 2 * bool(free and full) + ["take"] * bool(full)
        action = r.choice(actions)
        source, target = r.choice(full or names), r.choice(free or names)
        if action == "put":
            boxes[target] = r.choice(outside)
            lines.append(f"{who} puts {boxes[target]} in {target} .")
        elif action == "move":
            lines.append(f"{who} moves {boxes[source]} from {source} to {target} .")
            boxes[source], boxes[target] = "nothing", boxes[source]
        else:
            lines.append(f"{who} takes {boxes[source]} out of {source} .")
            boxes[source] = "nothing"
    return " ".join(lines), boxes, things


def stories_line(r: Random, w: Words) -> str:
    text = next(iter(held_out()))
    while text in held_out():
        text, boxes, _ = story(r, w, r.randrange(4))
    one, two, three = (f"{box} contains {boxes[box]}" for box in r.sample(list(boxes), 3))
    return f"{text} now {one} , {two} and {three} ."


LINES = (words_line, phrases_line, sentences_line, questions_line, reflexives_line,
         negation_line, agreement_line, gaps_line, clauses_line, stories_line)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Scenes.


def one_line(r: Random, w: Words, stage: int) -> str:
    """A line of the stage that is not held out, and in which no noun, verb, adjective or adverb comes twice."""
    while True:
        line = LINES[stage](r, w)
        if line not in held_out() and (STAGES[stage] == "stories" or repeats_nothing(line)):
            return line


def repeats_nothing(line: str) -> bool:
    content = [LEMMAS[word] for word in line.split() if word in LEMMAS]
    return len(set(content)) == len(content)


def scene(r: Random, stage: int) -> list[str]:
    """4 to 12 different lines of one stage (a few of the stage before), about the same few people and things."""
    w = choose_words(r, stage)
    lines: dict[str, None] = {}  # an ordered set
    length = min(12, 4 + int(r.expovariate(0.25)))
    while len(lines) < length:
        before = 3 <= stage <= 8 and r.random() < 0.15
        lines[one_line(r, w, stage - before)] = None
    return list(lines)


def documents(seed: int = 0, words: int = 150_000) -> Iterator[list[str]]:
    """Scenes of 4 to 12 lines, about `words` words and punctuation marks in all, the stages mixed by SHARES.

    The sentences of `minimal_pairs()` and the stories of `entity_items()`, both with their defaults, are left out.
    """
    r = Random(f"text {seed}")
    written = dict.fromkeys(STAGES, 0)
    while sum(written.values()) < words:
        # the stage that is furthest behind its share comes next, which keeps the mixture even from start to end
        stage = min(STAGES, key=lambda name: written[name] / SHARES[name])
        lines = scene(r, STAGES.index(stage))
        written[stage] += sum(len(line.split()) for line in lines)
        yield lines


def sample_lines(stage: int, n: int, seed: int = 0) -> list[str]:
    """n lines of STAGES[stage] (counted from 0), each from a scene of its own."""
    r = Random(f"sample {stage} {seed}")
    return [one_line(r, choose_words(r, stage), stage) for _ in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# Minimal pairs. Every paradigm has two frames and two fillings of their gap "___": the first filling is right in the
# first frame only, the second in the second only. So each filling is right as often as it is wrong, whatever its
# frequency; and where the frames differ further away than a model of neighboring words sees, it scores exactly 50 %.
# Slots: n and m are animate nouns (n0 singular, n1 plural, n either), v, see and verb are verbs in the same way.

PARADIGMS = {  # BLiMP's linguistics_term and field -> UID -> two frames, two fillings
    ("subject_verb_agreement", "morphology"): {
        "agreement_simple": ("the {a} {n0} ___ .", "the {a} {n1} ___ .", "{end0}", "{end1}"),
        "agreement_irregular_plural": (
            "the {odd0} {often} ___ {place} .", "the {odd1} {often} ___ {place} .", "{v0}", "{v1}"),
        "agreement_across_pp": ("the {n0} {near} the {m} ___ .", "the {n1} {near} the {m} ___ .", "{end0}", "{end1}"),
        "agreement_across_subject_relative": (
            "the {n0} {who} {see0} the {m} ___ .", "the {n1} {who} {see1} the {m} ___ .", "{end0}", "{end1}"),
        "agreement_across_object_relative": (
            "the {n0} {who} the {m} {msee} ___ .", "the {n1} {who} the {m} {msee} ___ .", "{end0}", "{end1}"),
        "agreement_coordination": (
            "the {n0} {near} the {a} {m0} ___ .", "the {n0} and the {a} {m0} ___ .", "{end0}", "{end1}"),
        "question_auxiliary": ("___ the {a} {n0} {v1} {place} ?", "___ the {a} {n1} {v1} {place} ?", "does", "do"),
        "question_verb_form": ("the {a} {n0} ___ the {m} .", "does the {a} {n0} ___ the {m} ?", "{see0}", "{see1}"),
    },
    ("determiner_noun_agreement", "morphology"): {
        "determiner_noun": ("{name} {took} this ___ .", "{name} {took} these ___ .", "{thing0}", "{thing1}"),
        "determiner_noun_adjectives": (
            "{name} {took} this {a} {color} ___ .", "{name} {took} these {a} {color} ___ .", "{thing0}", "{thing1}"),
    },
    ("anaphor_agreement", "morphology"): {
        "anaphor_gender": (
            "{one} {quickly} {washed} ___ .", "{other} {quickly} {washed} ___ .", "{oneself}", "{otherself}"),
        "anaphor_number": (
            "the {a} {known0} {quickly} {washed} ___ .", "the {a} {known1} {quickly} {washed} ___ .",
            "{itself}", "themselves"),
    },
    ("binding", "syntax_semantics"): {
        "reflexive_c_command_gender": (
            "{one} {near} {other} {washed} ___ .", "{other} {near} {one} {washed} ___ .", "{oneself}", "{otherself}"),
        "reflexive_c_command_number": (
            "the {known0} {near} the {m1} {washed} ___ .", "the {known1} {near} the {m0} {washed} ___ .",
            "{itself}", "themselves"),
    },
    ("npi_licensing", "semantics"): {
        "npi_ever": (
            "___ {n} {near} the {m} ever {v} {place} .", "___ {n} {near} the {m} never {v} {place} .", "no", "{det}"),
        "npi_any": ("___ {n} {place} {verb} any {objects} .", "___ {n} {place} {verb} no {objects} .", "no", "{det}"),
        "npi_scope": ("___ ever {v} {place} .", "___ never {v} {place} .",
                      "no {n} {who} {mdet} {m} {msee}", "{det} {n} {who} no {m} {msee}"),
    },
    ("filler_gap_dependency", "syntax"): {
        "gap_object_question": (
            "___ did {det} {a} {n} {find} {place} ?", "___ did {det} {a} {n} {find} the {thing0} {place} ?",
            "{what}", "{why}"),
        "gap_subject_question": (
            "___ did {det} {human} {say} {found} the {thing0} ?",
            "___ did {det} {human} {say} the {m} {found} the {thing0} ?",
            "who", "{why}"),
        "gap_what_that": (
            "{name} {knew} ___ {det} {a} {n} {found} {place} .",
            "{name} {knew} ___ {det} {a} {n} {found} the {thing0} {place} .",
            "{what}", "that"),
    },
    ("argument_structure", "syntax"): {
        "transitivity": ("the {n} ___ {place} .", "the {n} ___ the {thing0} {place} .", "{slept}", "{found}"),
    },
}  # fmt: skip


def slots(r: Random, index: int) -> dict[str, str]:
    """Words for the slots of the frames, rare words as often as frequent ones.

    The number of m follows the index: as an attractor it agrees with the right form as often as with the wrong one.
    """
    w = LEXICON
    one_of = {kind: r.choice(words) for kind, words in w.items()}
    n, m = r.sample(w["human"] + w["animal"], 2)
    number, m_number = r.randrange(2), index % 2
    v, see, place = one_of["sleep"], r.choice(w["see"] + w["chase"]), one_of["place"]
    end = r.choice(([f"{form} {place}" for form in v], [f"{be} {one_of['feeling']}" for be in BE]))
    odd = r.choice([x for x in w["human"] + w["animal"] if x.plural != add_ending(x.singular, "s")])
    known = {g: r.choice([x for x in w["human"] + w["animal"] if x.gender == g]) for g in "fmn"}
    refer = {g: f"the {x.singular}" for g, x in known.items()}
    if r.random() < 0.5:
        refer |= {g: r.choice([x.singular for x in w["name"] if x.gender == g]) for g in "fm"}
    one, other = r.sample("fmn", 2)
    gender = r.choice("fmn")
    dets = ("the", "this", "every"), ("the", "these", "some", "many", "two")
    kind, objects = r.choice((("see", "thing"), ("take", "thing"), ("eat", "food")))
    find = r.choice([x for x in w["see"] + w["take"] if x.base in NEED])
    return one_of | dict(
        n0=n[0], n1=n[1], n=n[number], m0=m[0], m1=m[1], m=m[m_number], v0=v[0], v1=v[1], v=v[number],
        see0=see[0], see1=see[1], msee=see[m_number], end0=end[0], end1=end[1], odd0=odd[0], odd1=odd[1],
        who=relative(n.kind), near=r.choice(w["near"][:-1]), a=one_of["size"], name=one_of["name"].singular,
        one=refer[one], other=refer[other], oneself=HIMSELF[one], otherself=HIMSELF[other],
        known0=known[gender][0], known1=known[gender][1], itself=HIMSELF[gender], washed=one_of["wash"].past,
        det=r.choice(dets[number]), mdet=r.choice(dets[m_number]),
        verb=one_of[kind][number], objects=one_of[objects].plural, took=one_of["take"].past,
        thing0=one_of["thing"][0], thing1=one_of["thing"][1], human=one_of["human"][number],
        say=one_of["say"].base, knew=one_of["know"].past, find=find.base, found=find.past,
        what=r.choice(("what", "who")) if find in w["see"] else "what", why=r.choice(("why", "when")),
        slept=r.choice([x for x in w["sleep"] if x.base in NEVER]).past,
    )  # fmt: skip


def minimal_pairs(n: int = 200, seed: int = 0) -> dict[str, list[dict]]:
    """UID -> n minimal pairs in BLiMP's format; balanced if n is a multiple of 4. A smaller n gives the first of them.

    `documents` holds out the sentences of seed 0 up to n = 200; those of another seed may stand in the text.
    """
    result = {}
    for uid, (term, field, texts) in {u: (*key, t) for key, rows in PARADIGMS.items() for u, t in rows.items()}.items():
        r = Random(f"pairs {uid} {seed}")
        pairs: list[tuple[str, str]] = []  # (good, bad)
        while len(pairs) < n:
            words = slots(r, len(pairs) // 2)
            (a, b), (c, d) = ([text.replace("___", x).format_map(words) for x in texts[2:]] for text in texts[:2])
            if repeats_nothing(a) and repeats_nothing(d) and {(a, b), (d, c)}.isdisjoint(pairs):
                pairs += [(a, b), (d, c)]
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
    0 to 3, and each fourth answer is "nothing": whoever looks at the options alone scores 25 %.
    """
    r = Random(f"entities {seed}")
    items: list[dict] = []
    while len(items) < n:
        operations, empty = len(items) % 4, len(items) // 4 % 4 == 0
        text, boxes, things = story(r, choose_words(r), operations)
        asked = [box for box, content in boxes.items() if (content == "nothing") == empty]
        if asked:
            box = r.choice(asked)
            wrong = r.sample([x for x in [*things, "nothing"] if x != boxes[box]], 3)
            options = [f" {option} ." for option in (boxes[box], *wrong)]
            items.append(dict(input_prefix=f"{text} now {box} contains", options=options, numops=operations))
    return items


@functools.cache
def held_out() -> frozenset[str]:
    """The sentences of the pairs, and the stories (without their last sentence) of the entity items."""
    pairs = {pair[key] for uid in minimal_pairs().values() for pair in uid for key in ("sentence_good", "sentence_bad")}
    return frozenset(pairs | {item["input_prefix"].partition(" now ")[0] for item in entity_items()})


def main() -> None:
    """Print lines of every stage, then two pairs of every paradigm and an item of entity tracking."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    terminal.prepare("toy.py")
    parser.add_argument("--sample", action="store_true", help="thirty lines of each stage (default: four, and pairs)")
    args = parser.parse_args()
    for stage, name in enumerate(STAGES):
        print("", f"{stage + 1}. {name}", "", *sample_lines(stage, 30 if args.sample else 4), sep="\n")
    if not args.sample:
        print("\nminimal pairs, the second of each ungrammatical\n")
        for uid, pairs in minimal_pairs().items():
            for pair in pairs[:2]:
                print(f"{uid:36}{pair['sentence_good']}\n{'':34}* {pair['sentence_bad']}")
        item = entity_items()[2]
        print(f"\nentity tracking, the first option is right\n\n{item['input_prefix']} ...{' |'.join(item['options'])}")


if __name__ == "__main__":
    main()
