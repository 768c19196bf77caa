"""Stages 1, 2 and 4 of the paper's curriculum, cut out of free text, and a picture of how they come and go.

    python -m experiments.stages ../shared/data/corpus        # with childes/, children_stories/ and dialogue/ in it
    python -m experiments.stages --figure                     # needs wordfreq and matplotlib
    python train.py --data=data/stages --order=stages --difficulty=composite

The first writes data/stages/1-short (CHILDES utterances of 2 or 3 words, without speaker labels), 2-medium (4 to 10
words) and 4-stories (stories and dialogues). Stage 3, sentences that a large model wrote, has no free source and is
left out. The second prepares them and draws results/figures/stages.png and .svg: lines are the tents, points are the
shares in the order that --order=stages made.
"""

import argparse
import importlib.util
import re
from pathlib import Path

import numpy as np

import curriculum
import data
from flags import new_parser, number
from tools.plot import COLOURS, DPI, MARKERS, STYLE, new_figure

OUT, FIGURE = Path("data/stages"), Path("results/figures/stages.png")
# folder: (name in the figure, sources, the least and the largest number of words of a line)
STAGES = {
    "1-short": ("utterances of 2 or 3 words", ("childes",), 2, 3),
    "2-medium": ("utterances of 4 to 10 words", ("childes",), 4, 10),
    "4-stories": ("stories and dialogues", ("children_stories", "dialogue"), 1, 10**9),
}


def cut(corpus: Path, words: int | None = None) -> None:
    """Write data/stages/<stage>/<source>.txt; with `words` about so many in all: of every source each n-th document."""
    texts = {}
    for stage, (_, sources, least, most) in STAGES.items():
        for source in sources:
            lines = data.file_lines(data.corpus_files(corpus / source), "strict")
            bare = (data.split_label(line)[1] for line in lines)
            kept = "\n".join(line for line in bare if not line or least <= len(line.split()) <= most)
            if not kept.strip():
                raise data.DataError(f"{corpus / source}: has no line of at least {least} and at most {most} words")
            texts[OUT / stage / f"{source}.txt"] = re.split("\n\n+", kept.strip("\n"))
    total = sum(len(document.split()) for documents in texts.values() for document in documents)
    share = min(1, words / total) if words else 1
    for file, documents in texts.items():
        steps = np.ceil(np.arange(len(documents) + 1) * share)
        taken = [document for document, step in zip(documents, np.diff(steps), strict=True) if step]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(taken) + "\n", encoding="utf-8", newline="")
        print(f"{file}: {sum(len(document.split()) for document in taken):,} words")


def measured(corpus: data.Corpus, lines: np.ndarray, bins: int) -> np.ndarray:
    """The stages' shares of the tokens in so many equal parts of the text in that order, (bins, K)."""
    stage = np.repeat(corpus.line_stage[lines], np.diff(corpus.line_start)[lines])
    names = np.unique(stage)
    return np.array([[np.mean(part == name) for name in names] for part in np.array_split(stage, bins)])


def draw(shares: np.ndarray, totals: np.ndarray):
    """The picture: tents as lines, measured shares as points."""
    figure, tau = new_figure(4.2), np.linspace(0, 1, 201)
    ax, middles = figure.subplots(), (np.arange(len(shares)) + 0.5) / len(shares)
    tents = curriculum.stage_shares(tau, len(STAGES))
    for k, (stage, (name, *_)) in enumerate(STAGES.items()):
        ax.plot(tau, tents[:, k], color=COLOURS[k])
        label = f"{stage[0]}: {name}, {totals[k]:.0%} of the tokens"
        ax.plot(middles, shares[:, k], MARKERS[k], color=COLOURS[k], label=label)
    ax.set(xlabel="progress: share of the text that has gone by", ylabel="share of a stage", xlim=(0, 1))
    ax.set_title("Stages of --order=stages: lines as wanted, points as made", pad=58)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def figure() -> None:
    """Order data/stages and draw the shares. Raises ValueError if that has not been cut, or without wordfreq."""
    import matplotlib

    corpus = data.open_prepared(data.prepare(str(OUT), Path("data/cache")))
    lines = curriculum.order_lines(corpus, "stages", "composite", 0)
    shares, totals = measured(corpus, lines, 25), measured(corpus, lines, 1)[0]
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        drawn = draw(shares, totals)
        drawn.savefig(FIGURE, dpi=DPI, pil_kwargs={"optimize": True})
        drawn.savefig(FIGURE.with_suffix(".svg"), metadata={"Date": None})
    print(f"{FIGURE} and .svg: {len(lines):,} lines in {OUT}, " + ", ".join(f"{total:.0%}" for total in totals))


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked. Ends the program on a wrong one."""
    parser = new_parser("experiments.stages", __doc__)
    add = parser.add_argument
    add("corpus", type=Path, nargs="?", help="cut the stages out of this folder (default: they are there)")
    add("--words", type=number(int, 1), help="in all, about; whole documents are taken (default: all there are)")
    add("--figure", action="store_true", help="order the stages and draw their shares")
    args = parser.parse_args(argv)
    if not args.corpus and not args.figure:
        parser.error("nothing to do; give a corpus to cut, or --figure")
    if args.words and not args.corpus:
        parser.error("argument --words: of a corpus to cut; give one")
    sources = [source for _, sources, *_ in STAGES.values() for source in sources if args.corpus]
    if missing := [source for source in sources if not (args.corpus / source).is_dir()]:
        parser.error(f"{args.corpus / missing[0]}: no such folder; the corpus needs one")
    if args.figure and importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is missing: pip install matplotlib (it is in requirements-dev.txt)")
    return args


def main() -> None:
    args = get_args()
    try:
        if args.corpus:
            cut(args.corpus, args.words)
        if args.figure:
            figure()
    except ValueError as error:
        new_parser("experiments.stages").error(str(error))


if __name__ == "__main__":
    main()
