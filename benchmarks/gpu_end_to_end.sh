#!/usr/bin/env bash
# From text to translations on a machine with a GPU, through the commands of ds_seq: prepare, train
# (bf16 with experts, ZeRO 1), resume (ZeRO 3), train fp16 (ZeRO 2), distill, generate, export.
#
#   bash benchmarks/gpu_end_to_end.sh            in the root of the repository
#
# The text is synthetic: the words of the target language are those of the source spelled backwards.
# Every step reports its duration; the next steps run even if one fails. Exits with 1 if one failed.
#
# Environment: UPDATES of training (120), STEP_LIMIT in seconds per step (60), EXTRA options for
# check and train, PYTHON (python3).
set -uo pipefail
PYTHON=${PYTHON:-python3}
root=$PWD
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
updates=${UPDATES:-120}
half=$((updates / 2))
read -r -a extra <<<"${EXTRA:-}"
seq=("$PYTHON" -m ds_seq)
status=0
cd "$work" || exit 1

"$PYTHON" - <<'PY'
import random

rng = random.Random(1)
syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
words = sorted({"".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(900)})
translation = {word: word[::-1] + "n" for word in words}
for split, count in (("train", 12000), ("valid", 200), ("test", 200)):
    with open(f"{split}.en", "w") as source, open(f"{split}.de", "w") as target:
        for _ in range(count):
            line = [words[int(len(words) * rng.random() ** 2)] for _ in range(rng.randint(3, 14))]
            print(*line, file=source)
            print(*(translation[word] for word in line), file=target)
PY

experiment() { # NAME PRECISION MODEL_AND_CRITERION
    cat >"$1.yaml" <<YAML
name: $1
data:
  source_lang: en
  target_lang: de
  dir: shards
  raw:
    train: {source: train.en, target: train.de}
    valid: {source: valid.en, target: valid.de}
    test: {source: test.en, target: test.de}
  vocab: {size: 1000, model_type: bpe}
optimizer: {name: adamw, lr: 1.0e-3, betas: [0.9, 0.98]}
scheduler: {name: inverse_sqrt, warmup_updates: 60}
train:
  max_tokens: 4096
  precision: $2
  clip_norm: 1.0
  log_every: 20
  sanity_validation_batches: 1
validation:
  max_sentences: 100
generation: {beam: 5}
model:
  d_model: 256
  ffn_dim: 1024
  num_heads: 4
  encoder_layers: 2
  decoder_layers: 2
  norm_position: pre
$3
YAML
}

step() { # NAME COMMAND...
    local begun=$SECONDS name=$1
    shift
    echo "== $name: $*"
    timeout "${STEP_LIMIT:-60}" "$@" || {
        echo "== $name FAILED with exit code $?"
        status=1
    }
    echo "== $name took $((SECONDS - begun)) s"
}

train() { # NAME STAGE UPDATES OPTIONS...
    local name=$1 stage=$2 count=$3
    shift 3
    step "train $name, ZeRO $stage" "${seq[@]}" train "$name.yaml" \
        "train.deepspeed=$root/configs/ds_config/zero$stage.json" \
        "train.max_updates=$count" "train.validate_every=$half" "$@" ${extra[@]+"${extra[@]}"}
}

experiment moe bf16 '  moe: {num_experts: 8, top_k: 2}
criterion:
  name: model_and_base
  base: {name: cross_entropy, label_smoothing: 0.1}
  loss_weights: {load_balance: 0.01, router_z: 0.001}'
experiment dense fp16 'criterion: {name: cross_entropy, label_smoothing: 0.1}'
experiment student bf16 \
    'criterion: {name: distillation, teacher: runs/moe, strategy: batch_level, rate: 0.5}'

step check "${seq[@]}" check moe.yaml ${extra[@]+"${extra[@]}"}
step prepare "${seq[@]}" prepare moe.yaml
train moe 1 "$half"
train moe 3 "$updates" --resume
train dense 2 "$half"
train student 0 "$half"
step generate "${seq[@]}" generate runs/moe --input test.en --reference test.de --dtype bf16
step export "${seq[@]}" export runs/dense --out model.safetensors --dtype bf16
exit $status
