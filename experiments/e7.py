"""E7: few data. Does a constraint that is passive when it is met stop by itself, and no worse than early stopping?

    python -m experiments.e7 prepare ../shared/data/corpus      # data/e7/*; without a corpus the toy texts alone
    python -m tools.compare experiments/e7.toml --results=results --jobs=2    # and the other grids e7-*.toml
    python -m experiments.e7 score                              # results/e7-scores.*, of what is made

data/e7/8 is a text of eight batches to train on and as much held out; data/e7/8-10 is the same with a tenth of the text
to train on given up, so that a run can be stopped by it. Losses are on what is held out in both. A run ends with its
last weights or, if it gave up text, with those that have the smallest loss on that. "Best" is where an oracle would
stop. The worst tenth is that of the held-out lines, by nats per token.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import torch

import checkpoint
import curriculum
import data
import evaluate
import journal
import toy
from experiments import e5
from experiments.goal import BOOKS
from flags import new_parser
from machine import pick_device
from tasks import Encoder
from tools import compare

DATA, FILE = Path("data/e7"), Path("results/e7-scores.json")
SIZES, GIVEN_UP = (4, 8, 16, 32), (5, 10, 20)  # batches to train on; percent of the text
ORACLE = "random, 2e-3"  # the best of its rates on seed 11
OWN, FIRST = "recipe and idle, 0.7 of unseen ({})", "recipe and idle ({})"  # by two rules for the goal
IN_E7 = dict.fromkeys((OWN.format(8), FIRST.format(8)), "recipe and idle, 4e-3")  # e7.toml has it under another name
WORDS = 3790  # of the built-in corpus, for a batch to train on and as much held out


def give_up(corpus: data.Corpus, percent: int, final: Path) -> None:
    """The prepared folder with evenly spaced documents, so much of the text to train on, held out as well."""
    train, held_out = np.flatnonzero(~corpus.doc_val), corpus.doc_val.copy()
    held_out[train[np.linspace(0, len(train) - 1, round(len(train) * percent / 100)).astype(int)]] = True
    with data.new_folder(final) as work:
        for file in corpus.folder.iterdir():
            shutil.copy(file, work)
        with np.load(work / "index.npz") as index:
            np.savez(work / "index.npz", **(dict(index) | {"doc_val": held_out}))
        meta = {name: value for name, value in corpus.meta.items() if name != "seal"}
        index = work / "index.npz"
        meta["files"]["index.npz"] = {"bytes": index.stat().st_size, "blake2b": data.file_digest(index)}
        data.write_sealed(work / "meta.json", meta | {"n_val_docs": int(held_out.sum())})


def prepare(corpus: Path | None) -> None:
    """Write data/e7."""
    texts = {str(n): ["\n".join(scene) for scene in toy.documents(words=WORDS * n)] for n in SIZES}
    if corpus:
        pieces = [e5.excerpts(corpus / "gutenberg" / f"{book}.txt")[:24] for book in BOOKS]
        texts["books"] = ["\n".join(piece) for book in pieces for piece in book]
    for name, documents in texts.items():
        file = DATA / "text" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(documents) + "\n", encoding="utf-8", newline="")
        prepared = data.open_prepared(data.prepare(str(file), DATA / "cache", propose=2048, val_share=0.5, quiet=True))
        for percent in (0, *GIVEN_UP):
            final = DATA / (f"{name}-{percent}" if percent else name)
            if not final.exists():
                give_up(prepared, percent, final)
            print(f"{final}: {data.summary(str(final), data.open_prepared(final))}")


def line_losses(model: torch.nn.Module, corpus: data.Corpus) -> np.ndarray:
    """Nats per token of every held-out line that is not in the training text, (N,), after an end-of-text token."""
    lines = corpus.val_lines()[~corpus.line_seen[corpus.val_lines()]]
    items = [[(corpus.tokens[corpus.line_start[i] : corpus.line_start[i + 1]].tolist(), 0)] for i in lines]
    scores = evaluate.log_probabilities(model, items, corpus.eot)
    return np.array([-line / len(ids) for (line,), [(ids, _)] in zip(scores, items, strict=True)])


def worst_tenth(losses: np.ndarray) -> float:
    """The mean of the largest tenth."""
    return float(np.mean(np.sort(losses)[-max(1, len(losses) // 10) :]))


def score(out: Path) -> dict[str, dict[str, float]]:
    """Of a finished run, where it ends: update, held-out loss, that of the worst tenth, minimal pairs.

    Of one that gave up no text also all of its held-out losses, and its best.
    """
    config = checkpoint.read_config(out)
    own = data.open_prepared(Path(config["corpus"]["folder"]))
    base = data.open_prepared(own.folder.with_name(own.folder.name.split("-")[0]))
    T = config["flags"]["block_size"]
    model, tokenizer, _ = evaluate.load_run(out, pick_device("auto"))
    kept, found = dict(checkpoint.kept_weights(out)), {}
    if own.folder == base.folder:
        points = journal.evaluations(journal.read(out))
        losses = {point["update"]: point["val_loss"] for point in points if point["update"]}
        best, at = min(losses, key=losses.get), max(kept)
        found |= {"best": {"update": best, "loss": losses[best]}, "losses": losses}
    else:
        given_up = curriculum.validation_blocks(dataclasses.replace(own, doc_val=own.doc_val & ~base.doc_val), T)
        stops = {}
        for update, file in kept.items():
            checkpoint.fill(model, checkpoint.load(file)["model"], file)
            stops[update] = evaluate.mean_loss(model, *given_up)
        at = min(stops, key=stops.get)
    checkpoint.fill(model, checkpoint.load(kept[at])["model"], kept[at])
    loss = evaluate.mean_loss(model, *curriculum.validation_blocks(base, T))
    end = {"update": at, "loss": loss, "worst": worst_tenth(line_losses(model, base))}
    if "books" not in base.folder.name:
        encode = Encoder(tokenizer)
        pairs = {uid: [[encode("", pair[f"sentence_{kind}"])[0] for kind in ("good", "bad")] for pair in some]
                 for uid, some in toy.minimal_pairs().items()}  # fmt: skip
        right = evaluate.score_pairs(model, pairs, base.eot).values()
        end["pairs"] = float(np.mean([one["accuracy"] for one in right]))
    return found | {"end": end}


def table(runs: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row per run, mean and standard error over its seeds, and its end against the best of ORACLE."""
    columns = [("end", "loss", 3), ("end", "worst", 2), ("end", "pairs", 1), ("best", "loss", 3), ("best", "update", 0)]
    head = ["run", "held-out loss at the end, nats", "worst tenth", "minimal pairs, %", "at best", "at update"]
    head += [f"end against the best of {ORACLE}"]
    rows, oracle = [], {seed: one["best"]["loss"] for seed, one in runs.get(ORACLE, {}).items()}
    for run, seeds in runs.items():
        cells = [compare.spread([one[at].get(what) for one in seeds.values()], digits) for at, what, digits in columns]
        own = {seed: one["end"]["loss"] for seed, one in seeds.items()}
        rows.append([run, *cells, compare.tested(*compare.in_common(own, oracle, float), 3)])
    return compare.markdown(head, rows)


def ends(kept: dict[str, dict], run: str, what: str = "loss") -> dict[str, float]:
    """Seed -> held-out loss of a run of e7-size.toml, or of e7.toml's form of it, where it ended."""
    seeds = kept["e7"].get(IN_E7.get(run)) or kept["e7-size"].get(run, {})
    return {seed: one["end"][what] for seed, one in seeds.items()}


def trained_again(kept: dict[str, dict], text: str, percent: int = GIVEN_UP[-1]) -> dict[str, float]:
    """Seed -> held-out loss of `random` on all of its text, for as many passes as the run that gave up text was given.

    It is taken from the evaluation of `random` that is nearest.
    """
    whole, part = (kept["e7-size"].get(f"random{gave} ({text})", {}) for gave in ("", f" gives up {percent} %"))
    found = {}
    for seed in filter(part.__contains__, whole):
        end, losses = part[seed]["end"]["update"] / (1 - percent / 100), whole[seed]["losses"]
        found[seed] = losses[min(losses, key=lambda update: abs(int(update) - end))]
    return found


def sizes(kept: dict[str, dict]) -> tuple[list[str], str]:
    """The texts that have been run, and Markdown: what idling ends at, and how far it is from its rivals."""
    found = [text for text in map(str, (*SIZES, "books")) if ends(kept, OWN.format(text))]
    head = ["text", "recipe and idle", "by the first rule", "random, stopped by an oracle"]
    head += [f"gives up {p} %" for p in GIVEN_UP] + [f"stopped by {GIVEN_UP[-1]} %, then again on all of it"]
    head += ["recipe and idle against the oracle", "against that trained again"]
    head += ["against the best that gives up text", "worst tenth", "minimal pairs"]
    rows = []
    for text in found:
        own, rivals = OWN.format(text), [f"random gives up {p} % ({text})" for p in GIVEN_UP]
        oracle = {seed: one["best"]["loss"] for seed, one in kept["e7-size"][f"random ({text})"].items()}
        again = trained_again(kept, text)
        losses = [ends(kept, own), ends(kept, FIRST.format(text)), oracle]
        losses += [*(ends(kept, rival) for rival in rivals), again]
        best = min(rivals, key=lambda rival: np.mean(list(ends(kept, rival).values())))
        cells = [compare.spread(list(one.values()), 3) for one in losses]
        for other in (oracle, again, ends(kept, best)):
            cells.append(compare.tested(*compare.in_common(losses[0], other, float), 3))
        for what, digits in (("worst", 2), ("pairs", 1)):
            if (text, what) == ("books", "pairs"):
                cells.append("")
            else:
                two = compare.in_common(ends(kept, own, what), ends(kept, best, what), float)
                cells.append(compare.tested(*two, digits))
        rows.append([f"{text} batches" if text != "books" else "four books", *cells])
    return found, compare.markdown(head, rows)


def draw(runs: dict[str, dict[str, dict]], file: Path) -> None:
    """Held-out loss over updates, mean over seeds: a panel for each learning rate, a line for each method."""
    from matplotlib.figure import Figure

    methods: dict[str, dict[str, dict]] = {}
    for run in runs:
        name, _, rate = run.rpartition(", ")
        methods.setdefault(rate, {})[name] = runs[run]
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for ax, (rate, lines) in zip(panels, methods.items(), strict=True):
        for i, (name, seeds) in enumerate(lines.items()):
            updates = [int(update) for update in next(iter(seeds.values()))["losses"]]
            means = np.mean([list(one["losses"].values()) for one in seeds.values()], axis=0)
            ax.plot(updates, means, "osD^"[i], ls="-", color=compare.COLOURS[i + 1], markersize=4, label=name)
        ax.set(title=f"learning rate {rate}", xlabel="update")
    panels[0].set_ylabel("held-out loss, nats per token")
    panels[-1].legend(frameon=False)
    compare.save(figure, file)


def draw_sizes(kept: dict[str, dict], texts: list[str], file: Path) -> None:
    """Held-out loss against `random` stopped by an oracle, by size of the text: idling, and the rivals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    ax = figure.subplots()
    runs = {"recipe and idle": OWN}
    runs |= {f"random, stopped by {p} %": f"random gives up {p} % ({{}})" for p in GIVEN_UP}
    runs[f"by {GIVEN_UP[-1]} %, then again on all of it"] = ""
    for i, (name, run) in enumerate(runs.items()):
        for x, text in enumerate(texts):
            oracle = {seed: one["best"]["loss"] for seed, one in kept["e7-size"][f"random ({text})"].items()}
            own = ends(kept, run.format(text)) if run else trained_again(kept, text)
            gap, half, _ = compare.difference(*compare.in_common(own, oracle, float))
            look = {"fmt": "osD^v"[i], "color": compare.COLOURS[i + 1], "capsize": 3, "label": name if not x else None}
            ax.errorbar(x + 0.12 * (i - 2), gap, yerr=None if np.isnan(half) else half, **look)
    ax.axhline(0, color="black", linewidth=1)
    ax.set_xticks(range(len(texts)), [f"{text} batches" if text != "books" else "four books" for text in texts])
    ax.set(ylabel="held-out loss against random\nstopped by an oracle, nats", xlabel="text to train on")
    figure.legend(frameon=False, loc="outside right upper")
    compare.save(figure, file.with_name("e7-size"))


def main() -> None:
    parser = new_parser("experiments.e7", __doc__)
    parser.add_argument("what", choices=("prepare", "score"), help="see above")
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of folders of text (default: the toy texts only)")
    args = parser.parse_args()
    if args.what == "prepare":
        return prepare(args.corpus)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    for grid in ("e7", "e7-goal", "e7-size"):
        made = Path(f"results/{grid}.json")
        for run, seeds in json.loads(made.read_text())["results"].items() if made.exists() else ():
            for seed in seeds:  # seed 11 only chooses
                if seed != "11" and seed not in kept.setdefault(grid, {}).setdefault(run, {}):
                    kept[grid][run][seed] = compare.rounded(score(compare.folder(grid, run, seed)))
                    compare.keep(FILE, kept)
    import matplotlib

    with matplotlib.rc_context(compare.LOOK):
        draw(kept["e7"], FILE.with_name("e7-rates"))
        told = table({**kept["e7"], **kept.get("e7-goal", {})})
        if kept.get("e7-size"):
            texts, more = sizes(kept)
            told += "\n" + more
            draw_sizes(kept, texts, FILE)
    FILE.with_suffix(".md").write_text(told)
    print(told)


if __name__ == "__main__":
    main()
