#!/usr/bin/env bash
# Everything worth measuring in a few minutes on a machine with a GPU, in one command:
#
#   bash benchmarks/gpu_visit.sh                 in the root of the repository, ds_seq installed
#
# Versions, the GPU tests, a run from text to translations, the benchmark: each has a time limit, and
# the next one runs even if one fails. Logs and figures go to $OUT: versions.txt, tests.log,
# end_to_end.log, bench.json, bench.log. Exits with 1 if a step failed.
#
# Environment:
#   OUT         folder for the results (gpu_visit)
#   BUDGET      seconds for everything (530); the benchmark gets the remaining time
#   STEPS       steps to run ("tests end_to_end benchmark")
#   TESTS_LIMIT seconds for the tests (120)
#   BENCH_ARGS  options for benchmarks/gpu.py, such as "--only train_dense,loss --tokens 16384"
#   PYTHON      python3
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.." || exit 1
OUT=${OUT:-$PWD/gpu_visit}
BUDGET=${BUDGET:-530}
STEPS=${STEPS:-tests end_to_end benchmark}
PYTHON=${PYTHON:-python3}
export PYTHON PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT # set by a launcher that started this
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
status=0
left() { echo $((BUDGET - SECONDS)); }
wanted() { [[ " $STEPS " == *" $1 "* ]]; }

versions() {
    git log -1 --format="ds_seq %H" 2>/dev/null
    "$PYTHON" - <<'PY'
import importlib.metadata
import os
import sys

import torch

gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "NONE"
print("gpu", gpu, "cores", os.cpu_count())
print("python", sys.version.split()[0], "cuda", torch.version.cuda)
print("cudnn", torch.backends.cudnn.version())
for name in ("torch", "deepspeed", "triton", "numpy", "pydantic", "sentencepiece", "pytest"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "MISSING")
for name in (
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
    "NVIDIA_TF32_OVERRIDE",
    "DS_SEQ_TRITON",
    "CUDA_VISIBLE_DEVICES",
):
    print(name, os.environ.get(name))
PY
    timeout 20 nvidia-smi
}

finished() { # CODE LOG
    echo "exit code $1" | tee -a "$2"
    [ "$1" -eq 0 ] || status=1
}

echo "== versions"
versions >"$OUT/versions.txt" 2>&1
head -n 12 "$OUT/versions.txt"

if wanted tests; then
    echo "== tests ($(left) s left)"
    timeout "${TESTS_LIMIT:-120}" "$PYTHON" -m pytest -m gpu tests/gpu -q -p no:cacheprovider \
        --maxfail 12 --durations 8 >"$OUT/tests.log" 2>&1
    finished $? "$OUT/tests.log"
    grep -E "^(FAILED|ERROR|E  )|passed|failed" "$OUT/tests.log" | head -n 40
fi

if wanted end_to_end; then
    echo "== from text to translations ($(left) s left)"
    UPDATES=${UPDATES:-80} timeout 150 bash "$here/gpu_end_to_end.sh" >"$OUT/end_to_end.log" 2>&1
    finished $? "$OUT/end_to_end.log"
    grep -E "^== |rror|BLEU|valid |stopped" "$OUT/end_to_end.log" | tail -n 30
fi

seconds=$(($(left) - 5))
if wanted benchmark && ((seconds > 20)); then
    echo "== benchmark ($seconds s)"
    read -r -a options <<<"${BENCH_ARGS:-}"
    timeout $((seconds + 5)) "$PYTHON" "$here/gpu.py" --out "$OUT" --budget "$seconds" \
        ${options[@]+"${options[@]}"}
    finished $? "$OUT/bench.log"
fi
echo "== done after $SECONDS s"
ls -l "$OUT"
exit $status
