#!/usr/bin/env bash
# From nothing to a translation and its BLEU score, in one command:
#
#   bash launch/quickstart.sh [--dense] [--data TSV] [--out DIR] [--quick]
#
#   --dense      train the dense twin instead of the Mixture-of-Experts model
#   --data TSV   your own text, one pair a line: source, tab, target (default: fetch a sample)
#   --out DIR    where data/ and runs/ are made (default: the repository; with --data a folder
#                under runs/ that has the name of the file)
#   --quick      a short training, to see every step work; expect a poor score
#
# Installs into .venv, or into the active virtual environment. Asks nothing. Run it again to go on
# where it stopped: what is done is skipped.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/setup.sh
. "$ROOT/launch/setup.sh"

usage() {
    sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

usage_error() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

experiment=tiny_moe
tsv=
out=
overrides=()
name_suffix=
while [ $# -gt 0 ]; do
    case $1 in
        --dense) experiment=tiny_dense ;;
        --quick) name_suffix=_quick ;;
        --data | --out)
            [ $# -ge 2 ] || usage_error "$1 needs a value"
            if [ "$1" = --data ]; then tsv=$2; else out=$2; fi
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) usage_error "unknown option $1" ;;
    esac
    shift
done
if [ -n "$tsv" ]; then
    [ -f "$tsv" ] || usage_error "--data: no file $tsv"
    tsv=$(realpath "$tsv")
    base=$(basename "$tsv")
    [ -n "$out" ] || out=$ROOT/runs/quickstart_${base%%.*}
fi
out=${out:-$ROOT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$out" # paths in the experiment files are relative to the working folder

config=$ROOT/configs/experiments/$experiment.yaml
run=runs/$experiment$name_suffix
raw=data/quickstart/raw
if [ -n "$name_suffix" ]; then
    # A run of its own: the learning rate follows max_updates, so the long run must not continue it.
    overrides+=("name=$experiment$name_suffix" train.max_updates=150 train.validate_every=75)
fi

step=0
begin_step() {
    step=$((step + 1))
    stage=$*
    heading "Step $step of 5: $*"
}

show_and_run() {
    printf '$'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

stage="the set-up"
say_where_it_stopped() {
    local status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nStopped (exit code %s) in: %s. The same command again goes on from there.\n' \
            "$status" "$stage" >&2
    fi
}
trap say_where_it_stopped EXIT

# Two ranks: two GPUs, or two processes on the CPU. One GPU cannot serve two ranks.
choose_ranks() {
    local gpus cores
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    cores=$(nproc)
    case $gpus in
        0)
            ranks=2
            export DS_ACCELERATOR=cpu # else deepspeed warns in each process that it found no GPU
            ;;
        1)
            ranks=1
            [ "$experiment" = tiny_dense ] || overrides+=(train.expert_parallel=1)
            ;;
        *) ranks=2 ;;
    esac
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
    echo "$gpus GPU(s), $cores CPU core(s): $ranks process(es) with $OMP_NUM_THREADS thread(s) each"
}

# A free port, so that two runs on one machine do not meet; --quiet leaves out the launcher's own log.
launch() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    show_and_run deepspeed --quiet --num_gpus "$ranks" --master_port "$port" "$@"
}

# Five sentences spread over the test set: source, reference, hypothesis.
show_samples() {
    paste -d '\t' "$1" "$2" "$3" | awk -F '\t' -v total="$(wc -l <"$1")" '
        BEGIN { every = total > 5 ? int(total / 5) : 1 }
        NR % every == 0 && shown < 5 {
            shown++
            printf "\n  source      %s\n  reference   %s\n  hypothesis  %s\n", $1, $2, $3
        }'
}

show_expert_load() {
    echo
    show_and_run ds-seq load "$run"
}

set_up base
choose_ranks

begin_step "real text"
show_and_run python "$ROOT/prepare_data/fetch_sample.py" --out "$raw" ${tsv:+--tsv "$tsv"}

begin_step "clean it, learn subwords, binarize"
show_and_run ds-seq prepare "$config" "${overrides[@]}"

begin_step "train $run"
launch "$ROOT/ds_seq/train.py" "$config" "${overrides[@]}" --resume

begin_step "translate the test set and score it"
launch "$ROOT/ds_seq/generate.py" "$run" \
    --input "$raw/test.en" --reference "$raw/test.de" --output "$run/test.hyp"

begin_step "look at the result"
show_samples "$raw/test.en" "$raw/test.de" "$run/test.hyp"
[ "$experiment" = tiny_dense ] || show_expert_load

heading "What next"
cat <<END
Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Everything about the run is in $out/$run. Try:

  cd $out
  . $VIRTUAL_ENV/bin/activate
  echo 'Click the button to open the file.' | ds-seq generate $run
  tensorboard --logdir $run
  bash $ROOT/launch/quickstart.sh --dense          # the dense twin, on the same text
  bash $ROOT/launch/quickstart.sh --data your.tsv  # your own text

Your own experiment is a copy of $config:
README.md goes from your text to BLEU in five commands.
END
