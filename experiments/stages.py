"""Stages 1, 2 and 4 of the paper's curriculum, cut out of free text, and a picture of how they come and go.

    python -m experiments.stages ../shared/data/corpus        # with childes/, children_stories/ and dialogue/ in it
    python train.py --data=data/stages --order=stages --difficulty=composite

Writes data/stages/1-short (CHILDES utterances of 2 or 3 words, without speaker labels), 2-medium (4 to 10 words) and
4-stories (stories and dialogues), prepares them, and draws results/figures/stages.png: lines are the tents, points
are the shares in the order that --order=stages made. Stage 3, sentences that a large model wrote, has no free source
and is left out. The score needs wordfreq (pip install wordfreq).
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

import curriculum
import data
from tools.plot import COLOURS, DPI, MARKERS, STYLE, new_figure

OUT, FIGURE = Path("data/stages"), Path("results/figures/stages.png")
# folder: (name in the figure, sources, the least and the largest number of words of a line)
STAGES = {
    "1-short": ("utterances of 2 or 3 words", ("childes",), 2, 3),
    "2-medium": ("utterances of 4 to 10 words", ("childes",), 4, 10),
    "4-stories": ("stories and dialogues", ("children_stories", "dialogue"), 1, 10**9),
}


def cut(corpus: Path) -> None:
    """Write data/stages; a file for every file of the sources, documents as they were."""
    for stage, (_, sources, least, most) in STAGES.items():
        for file in (file for source in sources for file in data.corpus_files(corpus / source)):
            lines = [data.split_label(line)[1] for line in data.file_lines([file], "strict", tqdm(disable=True))]
            target = OUT / stage / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in lines if not line or least <= len(line.split()) <= most]
            target.write_text("\n".join(kept), encoding="utf-8", newline="")


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="experiments.stages", usage=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("corpus", type=Path, help="a folder with childes, children_stories and dialogue")
    args = parser.parse_args()
    try:
        cut(args.corpus)
        corpus = data.open_prepared(data.prepare(str(OUT), Path("data/cache")))
        lines = curriculum.order_lines(corpus, "stages", "composite", 0)
    except ValueError as error:
        parser.error(str(error))
    shares = measured(corpus, lines, 25)
    totals = measured(corpus, lines, 1)[0]
    import matplotlib

    with matplotlib.rc_context(STYLE):
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        draw(shares, totals).savefig(FIGURE, dpi=DPI, pil_kwargs={"optimize": True})
    print(f"{FIGURE}: {len(lines):,} lines in {OUT}, " + ", ".join(f"{t:.0%}" for t in totals))


if __name__ == "__main__":
    main()
