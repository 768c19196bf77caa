"""The two laws of the loss curve on our own runs: docs/laws.md has what came of it.

    python -m experiments.law prepare ../shared/data/corpus   # data/law/toy.txt, and data/law/sources of two sources
"""

import argparse
from pathlib import Path

import toy
from experiments import e5
from flags import new_parser

DATA = Path("data/law")
SOURCES = {"1-childes": "childes", "2-wikipedia": "wikipedia"}


def prepare(corpus: Path | None, words: int = 100_000) -> None:
    """Write the texts of experiments/law-shift.toml: more of the built-in corpus, and of two sources so many words."""
    texts = {DATA / "toy.txt": ["\n".join(scene) for scene in toy.documents(words=300_000)]}
    for stage, source in SOURCES.items() if corpus else ():
        pieces = ["\n".join(lines) for lines in e5.excerpts(corpus / source)]
        taken = pieces[:: max(1, len(pieces) * 500 // words)]
        texts[DATA / "sources" / stage / f"{source}.txt"] = taken
    for file, documents in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(documents) + "\n", encoding="utf-8", newline="")
        print(f"{file}: {sum(len(document.split()) for document in documents):,} words")


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("experiments.law", __doc__)
    parser.add_argument("what", choices=("prepare",), help="see above")
    parser.add_argument("corpus", type=Path, nargs="?", help="folder of folders of text (default: the toy text only)")
    args = parser.parse_args(argv)
    if args.corpus and (missing := [s for s in SOURCES.values() if not (args.corpus / s).is_dir()]):
        parser.error(f"{args.corpus / missing[0]}: no such folder; the corpus needs one")
    return args


def main() -> None:
    args = get_args()
    prepare(args.corpus)


if __name__ == "__main__":
    main()
