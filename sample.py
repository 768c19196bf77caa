"""Let a trained run write: python sample.py out/bcp-p1-1 --prompt "the dogs"

The prompt stands after an end-of-text token, as every line of the training text does; a sample ends where the model
ends its line.
"""

import argparse
import sys
from pathlib import Path


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sample.py",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    parser.add_argument("--prompt", default="", help="how each sample starts (default: nothing)")
    parser.add_argument("--samples", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--max-tokens", type=int, default=60, help="longest sample, in tokens (default: 60)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k likeliest tokens (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    for name in ("samples", "max_tokens", "top_k"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: {getattr(args, name)}: must be at least 1")
    if not 0 <= args.temperature < float("inf"):
        parser.error(f"argument --temperature: {args.temperature}: must be a number of at least 0")
    return args


ARGS = get_args() if __name__ == "__main__" else None  # wrong flags end here, before the slow import of torch

import torch  # noqa: E402

import evaluate  # noqa: E402
from machine import pick_device  # noqa: E402
from model import Transformer  # noqa: E402


@torch.no_grad()
def generate(
    model: Transformer, tokens: list[int], max_tokens: int, temperature: float, top_k: int, eot: int, seed: int
) -> list[int]:
    """Continue `tokens` until the end-of-text token or for max_tokens more; the new ids, without end-of-text."""
    random = torch.Generator().manual_seed(seed)
    device, new = model.model.norm.weight.device, []
    while len(new) < max_tokens:
        logits = model(torch.tensor([tokens + new], device=device))[0, -1].float().cpu()  # (V,)
        values, candidates = logits.topk(min(top_k, len(logits)))
        choice = 0 if temperature == 0 else torch.multinomial((values / temperature).softmax(0), 1, generator=random)
        if (token := int(candidates[choice])) == eot:
            break
        new.append(token)
    return new


def main(args: argparse.Namespace) -> None:
    try:
        model, tokenizer, _ = evaluate.load_run(args.run, pick_device(args.device))
    except ValueError as error:
        get_parser().error(str(error))
    eot = model.config.vocab_size - 1
    start = [eot, *tokenizer.encode_ordinary(args.prompt)]
    for i in range(args.samples):
        new = generate(model, start, args.max_tokens, args.temperature, args.top_k, eot, args.seed + i)
        print(tokenizer.decode(start[1:] + new))


if __name__ == "__main__":
    try:
        main(ARGS)
    except OSError as error:
        sys.exit(f"sample.py: {error}")
