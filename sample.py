"""Let a trained run write: python sample.py out/bcp-p1-1 --prompt "the dogs"

The prompt stands after an end-of-text token, as every line of the training text does; a sample ends where the model
ends its line.
"""

import argparse
from pathlib import Path

from flags import device_name, new_parser, number


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("sample.py", __doc__)
    add = parser.add_argument
    add("run", type=Path, help="run folder, as train.py wrote it")
    add("--prompt", default="", help="how each sample starts (default: nothing)")
    add("--samples", type=number(int, 1), default=5, help="how many")
    add("--max-tokens", type=number(int, 1), default=60, help="longest sample, in tokens")
    add("--temperature", type=number(float, 0), default=0.8, help="0 takes the likeliest token")
    add("--top-k", type=number(int, 1), default=50, help="draw from the k likeliest tokens")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the draws")
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser


ARGS = get_parser().parse_args() if __name__ == "__main__" else None  # wrong flags end before torch is loaded

import torch

import evaluate
from machine import pick_device
from model import Transformer


@torch.no_grad()
def generate(
    model: Transformer, tokens: list[int], max_tokens: int, temperature: float, top_k: int, eot: int, seed: int
) -> list[int]:
    """Continue `tokens` until the end-of-text token or for max_tokens more; the new ids, without end-of-text."""
    random = torch.Generator().manual_seed(seed)
    device, new = model.model.norm.weight.device, []
    while len(new) < max_tokens:
        logits = model(torch.tensor([tokens + new], device=device))[0, -1].float().cpu()  # (V,)
        if not logits.isfinite().all():
            raise ValueError("the weights give no finite numbers; train with a lower --lr")
        values, candidates = logits.topk(min(top_k, len(logits)))
        p = (values / max(temperature, 1e-6)).softmax(0)  # colder is no other, and 0 in float32
        choice = 0 if temperature == 0 else torch.multinomial(p, 1, generator=random)
        if (token := int(candidates[choice])) == eot:
            break
        new.append(token)
    return new


def main(args: argparse.Namespace) -> None:
    try:
        model, tokenizer, _ = evaluate.load_run(args.run, pick_device(args.device))
        eot = model.config.vocab_size - 1
        start = [eot, *tokenizer.encode_ordinary(args.prompt)]
        for i in range(args.samples):
            new = generate(model, start, args.max_tokens, args.temperature, args.top_k, eot, args.seed + i)
            print(tokenizer.decode(start[1:] + new))
    except ValueError as error:
        get_parser().error(str(error))


if __name__ == "__main__":
    main(ARGS)
