"""Does an export do in the tools that are installed here what the run does? One line for each that was tried.

    python -m tools.export out/bcp-p1-1 my_model
    python -m tests.exported out/bcp-p1-1 my_model

transformers is needed; lm_eval and minicons are tried if they are there. docs/export.md has what came of it.
"""

import argparse
import importlib.util
from importlib.metadata import version
from pathlib import Path

import torch

import evaluate
import toy

PREFIXES = ["the dogs near the", "a", "the cats"]
ENDS = [" cat run .", " dog sleeps .", " near the dogs sleep in the house ."]


def say(tool: str, what: str, difference: float) -> None:
    print(f"{tool} {version(tool)}: {what}: {difference:.1e}")


def furthest(these, those) -> float:
    return (torch.as_tensor(these) - torch.as_tensor(those)).abs().max().item()


@torch.no_grad()
def try_transformers(ours, encoding, folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = sorted({line for scene in toy.documents(words=30_000) for line in scene})
    wrong = sum(tokenizer(s)["input_ids"] != [encoding.eot_token, *encoding.encode_ordinary(s)] for s in lines)
    say("transformers", f"of {len(lines):,} lines have other tokens", wrong)
    x = torch.randint(encoding.eot_token, (2, 300), generator=torch.Generator().manual_seed(0))
    say("transformers", "furthest logit from ours, 300 tokens", furthest(model(x).logits, ours(x)))
    texts = [prefix + end for prefix, end in zip(PREFIXES, ENDS, strict=True)]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        logits, seen = model(**batch).logits, batch["attention_mask"] == 1
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        apart = max(furthest(logits[i][seen[i]], alone[i]) for i in range(len(texts)))
        say("transformers", f"furthest logit, padded on the {side} and alone", apart)
    more = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    together = model.generate(**batch, **more)[:, -6:]
    alone = torch.cat([model.generate(**tokenizer(text, return_tensors="pt"), **more)[:, -6:] for text in texts])
    say("transformers", "generated tokens, padded and alone, that differ", (together != alone).sum())


def try_lm_eval(expected: list[float], whole: list[float], folder: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
        return [Instance(kind, {}, some, i) for i, some in enumerate(arguments)]

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4)
    scores = model.loglikelihood(requests("loglikelihood", list(zip(PREFIXES, ENDS, strict=True))))
    say("lm_eval", f"loglikelihood (max_length {model.max_length})", furthest([s for s, _ in scores], expected))
    texts = [(prefix + end,) for prefix, end in zip(PREFIXES, ENDS, strict=True)]
    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4, add_bos_token=False)
    scores = model.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    say("lm_eval", "loglikelihood_rolling with add_bos_token=False", furthest(scores, whole))


def try_minicons(expected: list[float], whole: list[float], folder: str) -> None:
    from minicons import scorer

    model, total = scorer.IncrementalLMScorer(folder, "cpu"), lambda x: x.sum(0).item()
    texts = [prefix + end for prefix, end in zip(PREFIXES, ENDS, strict=True)]
    say("minicons", "sequence_score", furthest(model.sequence_score(texts, reduction=total), whole))
    scores = model.conditional_score(PREFIXES, [end.strip() for end in ENDS], reduction=total)
    say("minicons", "conditional_score", furthest(scores, expected))


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.exported", usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("dir", help="its export")
    args = parser.parse_args()
    ours, encoding, _ = evaluate.load_run(args.run, torch.device("cpu"))
    items = []
    for prefix, end in zip(PREFIXES, ENDS, strict=True):
        ids, n = encoding.encode_ordinary(prefix + end), len(encoding.encode_ordinary(prefix))
        items.append([(ids, n), (ids, 0)])
    expected, whole = zip(*evaluate.log_probabilities(ours, items, encoding.eot_token), strict=True)
    try_transformers(ours, encoding, args.dir)
    for tool, try_it in (("lm_eval", try_lm_eval), ("minicons", try_minicons)):
        if importlib.util.find_spec(tool):
            try_it(expected, whole, args.dir)
        else:
            print(f"{tool}: not installed")


if __name__ == "__main__":
    main()
