"""Do two checkouts train alike? python tests/records.py OTHER_CHECKOUT

Makes the small runs below with the code of the other checkout and with this one, and compares what their metrics.jsonl
record: losses, alphas, learning rates, batches, repeats, norms and scores must agree to the last digit. A run is named,
and has its flags; where the other checkout spells them differently, those too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--vocab-size=400 --device=cpu --n-layer=1 --n-embd=16 --n-head=2 --n-kv-head=1 --n-mlp=24 "
         "--block-size=16 --batch-size=16 --lr=0.01 --warmup=3 --eval-every=20 --norms-every=5 --epochs=2 "
         "--max-updates=45")  # fmt: skip
BCP = "--mode=bcp --goal=5.3"
STREAM = f"{BCP} --stream --replay=0.25 --buffer-tokens=512 --epochs=3 --max-updates=90"
# name -> flags here, flags there (None: the same)
RUNS: dict[str, tuple[str, str | None]] = {
    "random": ("--mode=random", None),
    "curriculum": ("--mode=curriculum", None),
    "repetition": ("--mode=curriculum-repeat", None),
    "repetition, four times": ("--mode=curriculum-repeat --repeats=4", None),
    "p = 1": (BCP, None),
    "p = 2": (f"{BCP} --p=2 --C=0.05", None),
    "p = 1, proximal": (f"{BCP} --pull=prox", f"{BCP} --prox"),
    "p = 2, proximal": (f"{BCP} --p=2 --pull=prox", f"{BCP} --p=2 --prox"),
    "no anchor": (f"{BCP} --C=0", None),
    "default goal": ("--mode=bcp", None),
    "unconverged": (f"{BCP} --goal=1 --max-repeats=6", None),
    "shuffled once": (f"{BCP} --order=shuffled-once", f"{BCP} --order=random"),
    "random order": (f"{BCP} --order=random", f"{BCP} --order=reshuffled"),
    "repetition, random order": ("--mode=curriculum-repeat --order=random",
                                 "--mode=curriculum-repeat --order=reshuffled"),
    "random, in order": ("--mode=random --order=curriculum", None),
    "left at the goal": (f"{BCP} --leave-at-goal --patience=1", f"{BCP} --threshold=1000 --patience=1"),
    "within reach": (f"{BCP} --p=2 --order=random --leave-at-goal --patience=1 --goal-rel=0.98",
                     f"{BCP} --p=2 --order=reshuffled --threshold=1000 --patience=1 --goal-rel=0.98"),
    "leak": (f"{BCP} --alpha-leak=0.2", None),
    "alpha on the rate": (f"{BCP} --alpha-on=lr --eta=0.5", None),
    "alpha on nothing": (f"{BCP} --alpha-on=none", None),
    "replay": (f"{BCP} --replay=0.25 --replay-power=2", None),
    "stream": (f"{BCP} --stream --epochs=3 --max-updates=90", None),
    "stream with a buffer": (STREAM, None),
    "lfr": ("--mode=lfr --epochs=3 --max-updates=80", None),
    "forgetting": ("--mode=curriculum --track-forgetting=6", None),
    "forgetting, replay": (f"{BCP} --replay=0.5 --track-forgetting=6", None),
    "cosine": (f"{BCP} --lr-schedule=cosine", None),
    "wsd": ("--mode=random --lr-schedule=wsd", None),
    "two parts": (f"{BCP} --grad-accum=2", None),
    "two parts, replay": (f"{BCP} --grad-accum=2 --replay=0.5", None),
    "a share of the text": ("--mode=random --data-share=0.3", None),
    "by length": (f"{BCP} --difficulty=length", None),
    "by rarity": (f"{BCP} --difficulty=rarity", None),
}  # fmt: skip
# Stopped in the middle and resumed, and by two processes.
RESUMED = (
    "repetition",
    "p = 1",
    "p = 2",
    "replay",
    "stream with a buffer",
    "lfr",
    "alpha on the rate",
    "forgetting, replay",
)
TWICE = ("random", "p = 1", "replay")


def train(checkout: Path, out: Path, flags: list[str], processes: int = 1) -> None:
    """One training with the code of a checkout. Raises RuntimeError with what it complained of."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "train.py", *flags, f"--out={out}"]
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def runs(there: bool) -> dict[str, tuple[list[str], bool, int]]:
    """Name -> flags, whether it is stopped and resumed, processes."""
    flags = {name: (other if there and other else own).split() for name, (own, other) in RUNS.items()}
    return (
        {name: (some, False, 1) for name, some in flags.items()}
        | {f"{name}, resumed": (flags[name], True, 1) for name in RESUMED}
        | {f"{name}, two processes": (flags[name], False, 2) for name in TWICE}
    )


def main() -> int:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("--only", nargs="+", help="these runs (default: all)")
    parser.add_argument(
        "--flags", default="", help="more flags for the runs here, such as --recipe=poster (default: none)"
    )
    parser.add_argument("--keep", type=Path, help="where the runs go, and are found again (default: nowhere)")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    text = folder / "scenes.txt"
    sys.path.insert(0, str(ROOT))
    import toy

    text.write_text("\n\n".join("\n".join(scene) for scene in toy.documents(words=2500)) + "\n")
    equal, compared = 0, 0
    for name in args.only or runs(False):
        found = []
        for side, checkout in (("there", args.other), ("here", ROOT)):
            flags, resumed, processes = runs(side == "there")[name]
            base = [f"--data={text}", f"--cache={folder / side}-cache", *SMALL.split(), *flags]
            base += args.flags.split() if side == "here" else []
            out = folder / side / name.replace(" ", "-").replace(",", "")
            if not (out / "metrics.jsonl").exists() or side == "here":
                subprocess.run(["rm", "-rf", str(out)], check=True)
                if resumed:
                    train(checkout, out, [*base, "--max-updates=23"])
                    train(checkout, out, ["--resume", next(f for f in base[::-1] if f.startswith("--max-updates"))])
                else:
                    train(checkout, out, base, processes)
            found.append(records(out))
        wrong = [(a["update"], key, a[key], b.get(key, "missing")) for a, b in zip(*found, strict=False)
                 for key in a if a[key] != b.get(key, "missing")]  # fmt: skip
        same = not wrong and len(found[0]) == len(found[1])
        equal, compared = equal + same, compared + 1
        print(
            f"{name:34} {len(found[0]):4} records  " + ("equal" if same else f"DIFFERENT: {wrong[:1] or 'length'}"),
            flush=True,
        )
    print(f"{equal} of {compared} runs are equal")
    return int(equal < compared)


if __name__ == "__main__":
    sys.exit(main())
