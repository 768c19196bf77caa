#!/usr/bin/env bash
# Everything that only a GPU can tell, most valuable first: some ten minutes on an H100, and then the headline table.
#
#     bash experiments/gpu.sh prepare CORPUS EVAL    # anywhere, once: text to tokens, in data/e5-gpu and data/cache
#     bash experiments/gpu.sh [PART...]              # on the GPU: these parts, or all
#
# CORPUS is a folder of folders of text, EVAL a folder with the folders blimp and blimp_supplement. `prepare` needs the
# packages of requirements.txt. The parts need one GPU with bfloat16 and some 60 GB of free memory, what `prepare` made
# (data/e5-gpu/train excepted), pytest and no network; for one line of the benchmark transformers, too.
#
# What a part prints goes at once into out/gpu/PART.txt, and into $OUT as well if OUT names a folder. A last line "done"
# says that the part has ended well, and it is not run again. One that was cut is: its trainings go on from their
# checkpoints. If a part fails, the others are run all the same, and the exit status is 1.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHON=$python PYTHONUNBUFFERED=1
parts=(tests doctor default bench loss memory table)

# A training into a folder, or what is left of it: train OUT FLAG...
train() {
    local out=$1 resume=
    shift
    [ ! -f "$out/config.json" ] || resume=--resume
    "$python" train.py "$@" $resume --out="$out"
}

tests() { "$python" -m pytest -v -rs -m gpu tests/test_gpu.py; }

doctor() { "$python" -m tools.doctor || [ $? = 1 ]; } # 1: there is a problem, and that is told

default() { train out/gpu-default --mode=bcp --p=1; }

bench() { # and the numbers as JSON, those of a CPU excepted
    "$python" -m tools.bench --quick --no-programs || return
    for file in results/bench-*.json; do
        [ "$file" = results/bench-cpu.json ] || cat "$file"
    done
}

loss() { # of 117m against updates: the way that trains, and beside it the plain one
    local run=(--data=data/e5-gpu/tokens --preset=117m --mode=random --max-updates=200 --eval-every=200)
    train out/gpu-bfloat16 "${run[@]}" --dtype=bfloat16 --compile &&
        train out/gpu-float32 "${run[@]}" --dtype=float32 --no-compile --grad-accum=2 &&
        "$python" - <<'END'
from pathlib import Path

import journal

runs = [journal.updates(journal.read(Path("out") / name)) for name in ("gpu-bfloat16", "gpu-float32")]
print("update,bfloat16 compiled,float32")
for ours, plain in zip(*runs, strict=True):
    print(f"{ours['update']},{ours['loss']:.4f},{plain['loss']:.4f}")
END
}

memory() { # of 117m by --grad-accum, in GB; what is too much for the card says so
    for trial in "1, True" "2, True" "4, True" "8, True" "1, False" "2, False" "4, False"; do
        echo "117m, --grad-accum and --compile $trial:"
        "$python" -c "from tools.doctor import tell; tell('cuda:0', '117m', $trial)" 2>&1 | tail -n 1 || true
    done
}

table() { bash experiments/e5-gpu.sh run data/e5-gpu/eval; }

# Run a part, unless it has ended well before.
part() {
    local file=out/gpu/$1.txt began=$SECONDS
    if [ -f "$file" ] && [ "$(tail -n 1 "$file")" = "done" ]; then
        echo "== $1: done before"
        [ -z "${OUT-}" ] || cp "$file" "$OUT"
        return
    fi
    echo "== $1"
    { "$1" 2>&1 && printf '%s s\ndone\n' $((SECONDS - began)); } | tee "$file" ${OUT:+"$OUT/$1.txt"}
}

if [ "${1-}" = prepare ]; then
    corpus=${2:?CORPUS is missing: $0 prepare CORPUS EVAL}
    eval=${3:?EVAL is missing: $0 prepare CORPUS EVAL}
    bash experiments/e5-gpu.sh prepare "$corpus"
    mkdir -p data/e5-gpu/eval
    cp -R "$eval/blimp" "$eval/blimp_supplement" data/e5-gpu/eval
    "$python" -c 'import data, model, pathlib; data.prepare("toy", pathlib.Path("data/cache"), propose=model.PRESETS["tiny"].vocab_size)'
    exit
fi
for name in "$@"; do
    case " ${parts[*]} " in
    *" $name "*) ;;
    *)
        echo "gpu.sh: $name: must be prepare, or some of ${parts[*]}" >&2
        exit 2
        ;;
    esac
done
"$python" -c 'import torch; torch.cuda.is_available() or exit("gpu.sh: no GPU was found")'
mkdir -p out/gpu ${OUT:+"$OUT"}
trap 'exit 130' INT TERM
failed=()
[ $# != 0 ] || set -- "${parts[@]}"
for name in "$@"; do
    part "$name" || failed+=("$name")
done
if [ ${#failed[@]} != 0 ]; then
    echo "gpu.sh: not done: ${failed[*]}; give the command again" >&2
    exit 1
fi
