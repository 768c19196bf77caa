"""E9: text that shifts. One source after another, nothing of what is past comes back: what is kept, what is learnt?

    python -m experiments.e9 prepare ../shared/data/corpus      # data/e9: three sources, once and several times over
    python -m tools.compare experiments/e9.toml --results=results --jobs=2
    python -m experiments.e9 score                              # results/e9-scores.*, of what is made

Plain training has the text of each source three times over, shuffled. BCP has it once, and stays on a batch for at most
three updates, so that both make the same number. Losses are on held-out lines of each source, in nats per token, with
the last weights kept before the next source began.

`train` is train.py with a flag more, --by-source: an anchor for each source in place of one for each batch, so that
--p=2 is L2 toward the weights before the source.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

import bcp
import checkpoint
import curriculum
import data
import evaluate
import flags
import journal
from experiments import e5
from machine import pick_device
from tasks import Encoder
from tools import compare

DATA, FILE = Path("data/e9"), Path("results/e9-scores.json")
SOURCES = {"1-childes": "childes", "2-stories": "children_stories", "3-wikipedia": "wikipedia"}
PASSES = {"once": 1, "thrice": 3, "fourfold": 4}


def prepare(corpus: Path, words: int, held_out: int) -> None:
    """Write data/e9/text/*, the prepared folders data/e9/once and /thrice, and data/e9/held-out/<stage>.txt."""
    for stage, source in SOURCES.items():
        train, aside = e5.parts(e5.excerpts(corpus / source), words // 500, held_out)
        for name, n in PASSES.items():
            e5.write(DATA / "text" / name / stage / f"{source}.txt", n * train)
        e5.write(DATA / "held-out" / f"{stage}.txt", aside)
    for name in PASSES:
        cached = data.prepare(str(DATA / "text" / name), DATA / "cache", propose=2048, val_share=0.02, quiet=True)
        if not (DATA / name).exists():
            (DATA / name).symlink_to(cached.relative_to(DATA))
    if len({(DATA / name / "tokenizer.json").read_bytes() for name in PASSES}) > 1:
        raise ValueError("the text several times over has another tokenizer than once, and losses cannot be compared")


def first_batches(corpus: data.Corpus, args: argparse.Namespace) -> list[int]:
    """Of each stage, the batch that it begins in. `args`: the flags of a run of --order=shift."""
    lines = curriculum.order_lines(corpus, "shift", args.difficulty, args.seed)
    lengths, stage = np.diff(corpus.line_start)[lines], corpus.line_stage[lines]
    before = [lengths[stage < name].sum() for name in np.unique(stage)]
    return [int(n // (args.block_size * (args.batch_size - flags.n_replayed(args)))) for n in before]


def train_by_source(argv: list[str]) -> int:
    """train.py; with --by-source, the anchor is dropped when a source begins and at no other batch."""
    import train

    if "--by-source" not in argv:
        return train.main(flags.get_args(argv))
    argv = [word for word in argv if word != "--by-source"]
    if "--resume" in argv:  # the anchor of a source is in no checkpoint
        argv = [*(word for word in argv if word != "--resume"), "--overwrite"]
    usual, drop_anchor = train.train, bcp.drop_anchor

    def by_source(run: train.Run, *more) -> bool:
        begins = first_batches(run.corpus, run.args)
        bcp.drop_anchor = lambda anchor, W: drop_anchor(anchor, W) if run.stream.batch in begins else None
        return usual(run, *more)

    train.train = by_source
    return train.main(flags.get_args(argv))


def score(out: Path) -> dict[str, dict]:
    """After each source: the update, and the loss on every source, of a finished run."""
    args = argparse.Namespace(**checkpoint.read_config(out)["flags"])
    corpus = data.open_prepared(Path(checkpoint.read_config(out)["corpus"]["folder"]))
    updates, kept = journal.updates(journal.read(out)), dict(checkpoint.kept_weights(out))
    model, tokenizer, _ = evaluate.load_run(out, pick_device("auto"))
    encode, found = Encoder(tokenizer), {}
    for stage, begins in zip(SOURCES, [*first_batches(corpus, args)[1:], np.inf], strict=True):
        ended = next((one["update"] - 1 for one in updates if one["batch"] is None or one["batch"] >= begins),
                     updates[-1]["update"])  # fmt: skip
        at = max(update for update in kept if update <= ended)
        checkpoint.fill(model, checkpoint.load(kept[at])["model"], kept[at])
        losses = {}
        for other in SOURCES:
            lines = filter(None, (DATA / "held-out" / f"{other}.txt").read_text().split("\n"))
            items = [[encode("", line)] for line in lines]
            scores = evaluate.log_probabilities(model, items, corpus.eot)
            losses[other] = -sum(one for (one,) in scores) / sum(len(ids) for [(ids, _)] in items)
        found[stage] = {"update": at, "losses": losses}
    return found


def old_and_new(run: dict[str, dict], stage: str) -> tuple[float, float]:
    """The mean loss on the sources before a stage, and the loss on its own, at its end."""
    losses = run[stage]["losses"]
    before = list(SOURCES)[: list(SOURCES).index(stage)]
    return statistics.fmean(losses[name] for name in before), losses[stage]


def beyond(kept: dict[str, dict[str, dict]], run: str, stage: str) -> list[float]:
    """By seed, how much more a run has lost of what is past than plain training at a rate with the same new loss.

    Plain training of more updates does not count, but that of the fewest always does. Between its rates its losses are
    interpolated, over those that no other is better than in both; outside of them the nearest one counts.
    """
    gaps, last = [], list(SOURCES)[-1]
    for seed, one in kept[run].items():
        plain = [kept[name][seed] for name in kept if name.startswith("plain") and seed in kept[name]]
        most = 1.02 * max([one[last]["update"], *(sorted(rate[last]["update"] for rate in plain)[:1])])
        points = [old_and_new(rate, stage) for rate in plain if rate[last]["update"] <= most]
        best = [(new, old) for old, new in points if not any(o < old and n < new for o, n in points)]
        if best:
            news, olds = zip(*sorted(best), strict=True)
            old, new = old_and_new(one, stage)
            gaps.append(old - float(np.interp(new, news, olds)))
    return gaps


def table(kept: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row per run; the loss on what is past and on the new source, after the second and the third."""
    later, rows = list(SOURCES)[1:], []
    heads = [f"after {stage[2:]}: {what}" for stage in later for what in ("past, nats", "new, nats", "against plain")]
    for run, seeds in kept.items():
        updates = statistics.fmean(one[later[-1]]["update"] for one in seeds.values())
        rows.append([run, str(len(seeds)), f"{updates:.0f}"])
        for stage in later:
            rows[-1] += [compare.spread([old_and_new(one, stage)[i] for one in seeds.values()], 2) for i in (0, 1)]
            gaps = [] if run.startswith("plain") else beyond(kept, run, stage)
            rows[-1].append(compare.tested(gaps, [0.0] * len(gaps), 2) if gaps else "")
    return compare.markdown(["run", "seeds", "updates", *heads], rows)


def draw(kept: dict[str, dict[str, dict]], file: Path) -> None:
    """After the second and after the third source: loss on what is past against loss on the new one, by method."""
    import matplotlib
    from matplotlib.figure import Figure

    methods: dict[str, list[str]] = {}
    for run in kept:
        once = run.startswith("BCP") and "within" not in run
        methods.setdefault("BCP, the text once" if once else run.partition(",")[0], []).append(run)
    with matplotlib.rc_context(compare.LOOK):
        figure = Figure(figsize=(13, 5), layout="constrained")
        for ax, stage in zip(figure.subplots(1, 2), list(SOURCES)[1:], strict=True):
            for i, (method, runs) in enumerate(methods.items()):
                points = [[old_and_new(one, stage) for one in kept[run].values()] for run in runs]
                past, new = np.array([np.mean(some, axis=0) for some in points]).T
                ax.plot(new, past, ls="-" if method.startswith("plain") else "none", marker="osD^v<P>X*"[i],
                        color=compare.COLOURS[i % 7], markersize=6, label=method)  # fmt: skip
            ax.set(xlabel=f"loss on {stage[2:]}, the new source, nats per token", title=f"after {stage[2:]}",
                   ylabel="loss on the sources before it")  # fmt: skip
        figure.legend(*ax.get_legend_handles_labels(), frameon=False, title="lower left is better", loc="outside right")
        compare.save(figure, file)


def main() -> int | None:
    if sys.argv[1:2] == ["train"]:
        return train_by_source(sys.argv[2:])
    parser = flags.new_parser("experiments.e9", __doc__)
    parser.add_argument("what", choices=("prepare", "train", "score"), help="see above; train takes train.py's flags")
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of folders of text (default: none)")
    parser.add_argument("--words", type=int, default=60_000, help="of each source, to train on (default: 60000)")
    args = parser.parse_args()
    if args.what == "prepare":
        if args.corpus is None or not all((args.corpus / source).is_dir() for source in SOURCES.values()):
            parser.error(f"{args.corpus}: is no folder with the folders {', '.join(SOURCES.values())}")
        return prepare(args.corpus, args.words, held_out=4000)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    runs = json.loads(Path("results/e9.json").read_text())["results"]
    for run, seed in ((run, seed) for run, seeds in runs.items() for seed in seeds if seed not in kept.get(run, {})):
        kept.setdefault(run, {})[seed] = compare.rounded(score(compare.folder("e9", run, seed)))
        compare.keep(FILE, kept)
    kept = {run: dict(sorted(kept[run].items())) for run in runs if runs[run]}
    FILE.with_suffix(".md").write_text(table(kept))
    draw(kept, FILE)
    print(table(kept))


if __name__ == "__main__":
    sys.exit(main())
