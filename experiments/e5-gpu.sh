#!/usr/bin/env bash
# E5 on a GPU, the headline table: the 117m model on all of the text, five epochs, four regimes and the best recipe.
#
#     bash experiments/e5-gpu.sh prepare CORPUS       # anywhere, once: held-out text and tokens, in data/e5-gpu
#     bash experiments/e5-gpu.sh run EVAL [RUN...]    # on the GPU: train and score these runs of e5-gpu.toml, or all
#
# CORPUS is a folder of folders of text, EVAL a folder with the folders blimp and blimp_supplement. `prepare` needs the
# packages of requirements.txt and a minute per ten million words. `run` needs one GPU with bfloat16 and some 40 GB of
# memory (--grad-accum=2 in the grid halves that), torch, numpy, tqdm, tiktoken, data/e5-gpu and no network. Every run
# is scored as soon as it has ended. What is worth keeping are the files results/e5-gpu*, copied to the folder $OUT if
# that is set; out/e5-gpu holds checkpoints of 1.4 GB. A call that was stopped, by a time limit say, goes on where it stood if it is given again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

case "${1-}" in
prepare)
    "$python" -m experiments.e5 prepare "${2:?CORPUS is missing: $0 prepare CORPUS}" --name=e5-gpu --words=1000000000
    rm -rf data/e5-gpu/cache data/e5-gpu/tokens
    "$python" data.py --data=data/e5-gpu/train --cache=data/e5-gpu/cache --vocab-size=16384
    mv data/e5-gpu/cache/train-* data/e5-gpu/tokens
    ;;
run)
    eval=${2:?EVAL is missing: $0 run EVAL [RUN...]}
    shift 2
    "$python" -c 'import torch; torch.cuda.is_available() or exit("e5-gpu.sh: no GPU was found")'
    if [ $# = 0 ]; then
        mapfile -t names < <("$python" -c 'import tomllib; print(*tomllib.load(open("experiments/e5-gpu.toml", "rb"))["runs"], sep="\n")')
        set -- "${names[@]}"
    fi
    for name in "$@"; do
        "$python" -m tools.compare experiments/e5-gpu.toml --results=results --only "$name"
        "$python" -m experiments.e5 score "$eval" --name=e5-gpu
        [ -z "${OUT-}" ] || cp results/e5-gpu*.json "$OUT"
    done
    ;;
*)
    echo "usage: $0 prepare CORPUS | run EVAL [RUN...]" >&2
    exit 2
    ;;
esac
