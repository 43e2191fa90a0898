"""Commands as the documentation of fairseq and of its two descendants prints them.

`DATA` stands for the folder with the data.
"""

from __future__ import annotations

import shlex

_IWSLT = """
    CUDA_VISIBLE_DEVICES=0 fairseq-train DATA --arch transformer_iwslt_de_en
    --share-decoder-input-output-embed --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --dropout 0.3 --weight-decay 0.0001
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 4096 --eval-bleu
    --eval-bleu-args '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-detok moses
    --eval-bleu-remove-bpe --eval-bleu-print-samples --best-checkpoint-metric bleu
    --maximize-best-checkpoint-metric
"""
_WMT_BIG = """
    fairseq-train DATA --arch transformer_vaswani_wmt_en_de_big --share-all-embeddings
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --lr 0.0005
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07 --dropout 0.3
    --weight-decay 0.0 --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --max-tokens 3584 --fp16 --update-freq 16 --max-update 300000
"""
_EXPERTS = """
    python user/train.py DATA --seed 43821 --user-dir user --ddp-backend=legacy_ddp --task
    translation_deepspeed --deepspeed_moe enc,dec --ep-world-size 8 --num-experts 8 --top-k 1
    --criterion model_and_base --loss-weights '{"base_crit": 1, "experts_gate_loss": 10}'
    --base-criterion label_smoothed_cross_entropy --base-criterion-config '{"label_smoothing":
    0.1}' --fp16 --arch transformer_ds_moe_tiny -s en -t de --reset-optimizer --optimizer adam
    --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --lr 5e-4 --dropout 0.3 --weight-decay 0.0001
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --max-update 300000 --max-tokens-valid
    4096 --max-tokens 8192 --update-freq 16 --validate-interval-updates 20 --scoring sacrebleu
    --eval-bleu --eval-bleu-args '{"beam": 4, "max_len_a": 1.2, "max_len_b": 10}'
    --eval-bleu-detok moses --eval-bleu-remove-bpe --eval-bleu-print-samples
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric --keep-last-epochs 1
    --save-interval-updates 100 --keep-interval-updates 1 --save-dir out/checkpoints/moe
    --tensorboard-logdir out/tb
"""
# VarunGumma/fairseq prints flags to add to a command of fairseq
_PLAIN = """
    fairseq-train DATA --arch transformer_tiny --optimizer adam --lr 1e-3
    --lr-scheduler inverse_sqrt --max-tokens 2000 --max-update 100
"""
_DISTILLED = (
    f"{_PLAIN} --task translation_with_kd --teacher-checkpoint-path teacher.pt "
    "--criterion label_smoothed_cross_entropy_with_kd"
)
_IDS = "as,bn,gu,hi,kn,ml,mr,or,pa,ta,te"
_TEXTS = {
    "iwslt": _IWSLT,
    "wmt_big": _WMT_BIG,
    "experts": _EXPERTS,
    "word_level": f"{_DISTILLED} --kd-strategy word_level",
    "word_seq_level": f"{_DISTILLED} --kd-strategy word_seq_level",
    "batch_level": f"{_DISTILLED} --kd-strategy batch_level --kd-rate 0.5",
    "global_level": f"{_DISTILLED} --kd-strategy global_level --kd-rate 0.5 "
    "--kd-queue-size 1000000",
    "global_language_wise": f"{_DISTILLED} --kd-strategy global_language_wise --kd-rate 0.5 "
    "--kd-queue-size 1000000",
    "adapters": f"{_PLAIN} --encoder-add-adapters --encoder-adapter-reduction-factor 2 "
    f"--encoder-adapter-ids {_IDS} --encoder-train-adapter hi --decoder-add-adapters "
    f"--decoder-adapter-reduction-factor 2 --decoder-adapter-ids {_IDS} "
    "--decoder-train-adapter hi --adapter-activation-fn gelu --load-checkpoint-liberally",
    "lora": f"{_PLAIN} --lora-args '" + '{"r": 8, "alpha": 16, "dropout": 0.05, "bias": "none", '
    '"target_modules": "k_proj,v_proj", "rank_scaled": false}'
    "' --attn-implementation fast --load-checkpoint-liberally",
    "stacking": f"{_PLAIN} --encoder-recurrent-stacking 6 --decoder-recurrent-stacking 6",
    "factorized": f"{_PLAIN} --encoder-factorized-embed-dim 32 --decoder-factorized-embed-dim 32",
    "swiglu": f"{_PLAIN} --activation-fn swiglu",
    "rms": f"{_PLAIN} --replace-layernorm-with-rmsnorm --run-sanity-validation-steps",
}
COMMANDS: dict[str, list[str]] = {name: shlex.split(text) for name, text in _TEXTS.items()}
"""The words of each command."""


def command(name: str, data: object, *more: str) -> list[str]:
    """Return the words of a command for a folder of data."""
    return [str(data) if word == "DATA" else word for word in COMMANDS[name]] + list(more)
