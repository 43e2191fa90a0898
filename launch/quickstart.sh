#!/usr/bin/env bash
# From nothing to a translation and its BLEU score, in one command:
#
#   bash launch/quickstart.sh [--dense] [--data TSV] [--out DIR] [--quick]
#
#   --dense      train the dense counterpart instead of the Mixture-of-Experts model
#   --data TSV   your own text, one pair per line: source, tab, target (default: fetch a sample)
#   --out DIR    folder for data/ and runs/ (default: the repository; with --data, a folder under
#                runs/ named after the file)
#   --quick      a short training run, to see every step work; expect a low score
#
# Installs into .venv, or into the active virtual environment. Never prompts. Run it again to resume
# after an interruption: finished steps are skipped.
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
cd "$out" # paths in the experiment files are relative to the working directory

config=$ROOT/configs/experiments/$experiment.yaml
run=runs/$experiment$name_suffix
raw=data/quickstart/raw
if [ -n "$name_suffix" ]; then
    # A separate run: the learning rate depends on max_updates, so the full run must not resume this one.
    overrides+=("name=$experiment$name_suffix" train.max_updates=150 train.validate_every=75
        scheduler.warmup_updates=50)
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
report_interruption() {
    local status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nStopped (exit code %s) in: %s. Run the same command again to resume.\n' \
            "$status" "$stage" >&2
    fi
}
trap report_interruption EXIT

# Two ranks: two GPUs, or two processes on the CPU. One GPU cannot serve two ranks.
choose_ranks() {
    local gpus cores
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    cores=$(nproc)
    case $gpus in
        0)
            ranks=2
            export DS_ACCELERATOR=cpu # otherwise DeepSpeed warns in every process that it found no GPU
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

# A free port, so that two runs on one machine do not collide; --quiet hides the launcher's own log.
launch() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    show_and_run deepspeed --quiet --num_gpus "$ranks" --master_port "$port" "$@"
}

# The model is trained on short sentences only, so it is tested on short ones; the output says so.
select_short_test_pairs() {
    python - "$run" "$raw/test.en" "$raw/test.de" "$run/test.en" "$run/test.de" <<'PY'
import sys
from pathlib import Path

from ds_seq.config.load import load_experiment
from ds_seq.text.sentencepiece import SentencePieceTokenizer

run = Path(sys.argv[1])
data = load_experiment(run / "config.yaml", []).data
sources, targets = (open(path, encoding="utf-8", newline="\n") for path in sys.argv[2:4])
short_sources, short_targets = (open(path, "w", encoding="utf-8") for path in sys.argv[4:6])
tokenizer = SentencePieceTokenizer.load(run / "vocab.model")
total = kept = 0
for source, target in zip(sources, targets, strict=True):
    total += 1
    if (
        len(tokenizer.encode(source.rstrip("\n"))) < data.max_source_length
        and len(tokenizer.encode(target.rstrip("\n"))) < data.max_target_length
    ):
        kept += 1
        short_sources.write(source)
        short_targets.write(target)
print(
    f"Test set: {kept} of {total} pairs, those of at most {data.max_source_length} subwords per side. "
    "The score is not comparable with published figures."
)
PY
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

# Share of the tokens routed to each expert in the last validation, as recorded during training.
show_expert_load() {
    echo
    python - "$run/metrics.jsonl" <<'PY'
import json
import sys

from ds_seq.reports.metrics import load_table

records = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
print(load_table([record for record in records if record["kind"] == "valid"][-1]))
PY
}

set_up base
choose_ranks

begin_step "fetch the text"
origin=${tsv:-sample}
changed_since() { # whether the file $1 (if given) is newer than the stamp $2
    [ -n "$1" ] && [ "$1" -nt "$2" ]
}
if [ "$(cat "$raw/.origin" 2>/dev/null)" = "$origin" ] && ! changed_since "$tsv" "$raw/.origin"; then
    echo "Already in $out/$raw"
else
    show_and_run python "$ROOT/prepare_data/fetch_sample.py" --out "$raw" ${tsv:+--tsv "$tsv"}
    echo "$origin" >"$raw/.origin"
fi

begin_step "clean the text, train the vocabulary, binarize"
show_and_run ds-seq prepare "$config" "${overrides[@]}"

begin_step "train $run"
launch "$ROOT/ds_seq/train.py" "$config" "${overrides[@]}" --resume

begin_step "translate the test set and score it"
select_short_test_pairs
launch "$ROOT/ds_seq/generate.py" "$run" \
    --input "$run/test.en" --reference "$run/test.de" --output "$run/test.hyp"

begin_step "look at the result"
show_samples "$run/test.en" "$run/test.de" "$run/test.hyp"
[ "$experiment" = tiny_dense ] || show_expert_load

heading "Next steps"
cat <<END
Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. All files of the run are in $out/$run. Try:

  cd $out
  . $VIRTUAL_ENV/bin/activate
  echo 'Click the button to open the file.' | ds-seq generate $run --input -
  tensorboard --logdir $run
  bash $ROOT/launch/quickstart.sh --dense          # the dense counterpart, same text
  bash $ROOT/launch/quickstart.sh --data your.tsv  # your own text

For your own text: ds-seq init --source train.en --target train.de > my.yaml
README.md describes the commands from there to BLEU.
END
