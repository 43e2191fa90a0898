"""Flags of `fairseq-train` about data, criterion, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping

from ds_seq.compat.fairseq.flag import Flag, becomes, idle, refused

_ALWAYS_RIGHT = "padding is on the right and changes no result"
_SUBWORDS = "give the files by --bpe subword_nmt, fastbpe or sentencepiece"
_SCORE = "`ds-seq score` computes it; --metrics chooses the metric"
_OTHER_OPTIMIZER = "belongs to an optimizer that is not supported"
_OTHER_SCHEDULE = "belongs to a schedule that is not supported"
_ALIGNED = "there is no supervised alignment; leave it out"

_CORPORA = "several languages are data.corpora and data.mixing here"
_NOISE = (
    "write an experiment with task: {name: denoising} (docs/PRETRAINING.md), whose noise mbart has "
    "the settings of --mask, --permute-sentences and the like"
)
ELSEWHERE: Mapping[str, str] = {
    "translation_multi_simple_epoch": _CORPORA,
    "multilingual_translation": _CORPORA,
    "translation_from_pretrained_bart": "its language tokens are not supported",
    "multilingual_denoising": _NOISE,
}
"""Tasks of fairseq whose commands are not translated, and what to do instead."""

DATA_FLAGS: tuple[Flag, ...] = (
    becomes("--task", "text", "translation", "task"),
    becomes("--source-lang -s", "text", None, "data.source_lang"),
    becomes("--target-lang -t", "text", None, "data.target_lang"),
    becomes("--train-subset", "text", "train", "data.source.folders"),
    becomes("--valid-subset", "text", "valid", "data.source.folders"),
    idle("--combine-valid-subsets --combine-val", "switch", False,
         "validation data are those of the split valid"),
    idle("--ignore-unused-valid-subsets", "switch", False,
         "validation data are those of the split valid"),
    idle("--dataset-impl", "text", None, "the format is seen in the files"),
    idle("--left-pad-source", "off", True, _ALWAYS_RIGHT),
    idle("--left-pad-target", "switch", False, _ALWAYS_RIGHT),
    idle("--load-alignments", "switch", False, "training does not use alignments"),
    refused("--upsample-primary", "int", -1, "use shards and data.corpora.NAME.upsample"),
    becomes("--truncate-source", "switch", False, "data.long_pairs"),
    idle("--num-batch-buckets", "int", 0, "it changes no result"),
    # text
    becomes("--bpe", "text", None, "data.vocab.fairseq"),
    becomes("--bpe-codes", "text", None, "data.vocab.fairseq.codes"),
    becomes("--sentencepiece-model", "text", None, "data.vocab.fairseq.sentencepiece"),
    refused("--bpe-separator", "text", "@@", "pieces that a word continues end with @@"),
    idle("--sentencepiece-enable-sampling", "switch", False, "the data are split already"),
    idle("--sentencepiece-alpha", "float", None, "the data are split already"),
    refused("--sentencepiece-model-path", "text", None, _SUBWORDS),
    refused("--gpt2-encoder-json", "text", None, _SUBWORDS),
    refused("--gpt2-vocab-bpe", "text", None, _SUBWORDS),
    refused("--bpe-cased", "switch", False, _SUBWORDS),
    refused("--bpe-vocab-file", "text", None, _SUBWORDS),
    refused("--bpe-merges", "text", None, _SUBWORDS),
    refused("--bpe-vocab", "text", None, _SUBWORDS),
    refused("--bpe-add-prefix-space", "switch", False, _SUBWORDS),
    becomes("--tokenizer", "text", None, "data.vocab.fairseq.moses"),
    idle("--moses-no-dash-splits", "switch", False, "the data are tokenized already"),
    idle("--moses-no-escape", "switch", False, "the data are tokenized already"),
    # validation
    becomes("--eval-bleu", "switch", False, "validation.metrics"),
    becomes("--eval-bleu-args", "json", {}, "generation"),
    becomes("--eval-bleu-detok", "text", "space", "data.vocab.fairseq.moses"),
    idle("--eval-bleu-detok-args", "text", "{}", "Moses' rules follow the target language"),
    idle("--eval-tokenized-bleu", "switch", False, "BLEU compares plain text, by sacrebleu"),
    becomes("--eval-bleu-remove-bpe", "optional", None, "data.vocab.fairseq"),
    idle("--eval-bleu-print-samples", "switch", False, "TensorBoard shows some translations"),
    idle("--scoring", "text", "bleu", _SCORE),
    idle("--sacrebleu-tokenizer", "text", "13a", _SCORE),
    idle("--sacrebleu-lowercase", "switch", False, _SCORE),
    idle("--sacrebleu-char-level", "switch", False, _SCORE),
    idle("--bert-score-lang", "text", "en", _SCORE),
    idle("--pad", "int", 1, _SCORE),
    idle("--eos", "int", 2, _SCORE),
    idle("--unk", "int", 3, _SCORE),
    idle("--wer-tokenizer", "text", "none", _SCORE),
    idle("--wer-remove-punct", "switch", False, _SCORE),
    idle("--wer-char-level", "switch", False, _SCORE),
    idle("--wer-lowercase", "switch", False, _SCORE),
)  # fmt: skip
"""The flags of the data and of the validation."""

CRITERION_FLAGS: tuple[Flag, ...] = (
    becomes("--criterion", "text", "cross_entropy", "criterion"),
    becomes("--label-smoothing", "float", 0.0, "criterion.label_smoothing"),
    refused("--sentence-avg", "switch", False,
            "the gradient is divided by tokens, not by sentences; leave it out"),
    idle("--report-accuracy", "switch", False, "the loss and the metrics are measured"),
    refused("--ignore-prefix-size", "int", 0, "every target token has a loss"),
    refused("--alignment-lambda", "float", 0.05, _ALIGNED),
    refused("--ctc-weight", "float", 1.0, "there is no CTC loss; leave it out"),
    refused("--rdrop-alpha", "float", 0.0, "R-Drop is not supported; leave it out"),
    refused("--latency-avg-weight", "float", 0.0, "there is no simultaneous translation"),
    refused("--latency-var-weight", "float", 0.0, "there is no simultaneous translation"),
    idle("--latency-avg-type", "text", "differentiable_average_lagging", "see the weight"),
    idle("--latency-var-type", "text", "variance_delay", "see the weight"),
    idle("--latency-gather-method", "text", "weighted_average", "see the weight"),
    idle("--latency-update-after", "int", 0, "see the weight"),
    refused("--underlying-criterion", "text", None, "there is no composite criterion"),
    # experts
    becomes("--base-criterion", "text", "", "criterion.base"),
    becomes("--base-criterion-config", "json", {}, "criterion.base"),
    becomes("--loss-weights", "json", {}, "criterion.loss_weights"),
    idle("--log-keys", "text", "", "every loss is logged"),
    idle("--can-sum", "off", True, "figures are always summed over ranks"),
    # distillation
    becomes("--teacher-checkpoint-path", "text", None, "criterion.teacher"),
    becomes("--kd-strategy", "text", None, "criterion.strategy"),
    becomes("--kd-rate", "float", None, "criterion.rate"),
    becomes("--kd-queue-size", "int", None, "criterion.queue_size"),
    becomes("--kd-criterion", "text", "kl_div", "criterion.divergence"),
    becomes("--kd-language-tags", "text", None, "data.language_tags"),
    becomes("--kd-args", "json", None, "criterion"),
)  # fmt: skip
"""The flags of the criterion."""

OPTIMIZER_FLAGS: tuple[Flag, ...] = (
    becomes("--optimizer", "text", None, "optimizer.name"),
    becomes("--lr --learning-rate", "list", [0.25], "optimizer.lr"),
    becomes("--weight-decay --wd", "float", 0.0, "optimizer.weight_decay"),
    becomes("--adam-betas", "list", [0.9, 0.999], "optimizer.betas"),
    becomes("--adam-eps", "float", 1e-8, "optimizer.eps"),
    idle("--use-old-adam", "switch", False, "the same steps, in another implementation"),
    idle("--fp16-adam-stats", "switch", False, "the optimizer's state stays in fp32"),
    refused("--adam-stable", "switch", False, "StableAdam is not supported; use --clip-norm"),
    becomes("--momentum", "float", None, "optimizer.momentum"),
    idle("--adafactor-eps", "text", "(1e-30, 1e-3)", "they are those of torch's Adafactor"),
    becomes("--clip-threshold", "float", 1.0, "optimizer.clip_threshold"),
    becomes("--decay-rate", "float", -0.8, "optimizer.beta2_decay"),
    refused("--beta1", "float", None, "Adafactor has no first moments; leave it out"),
    idle("--scale-parameter", "switch", False, "Adafactor's steps are always relative to the size"),
    refused("--relative-step", "switch", False, "Adafactor takes optimizer.lr; give --lr"),
    refused("--warmup-init", "switch", False, "needs --relative-step, which is not supported"),
    idle("--adadelta-rho", "float", 0.9, _OTHER_OPTIMIZER),
    idle("--adadelta-eps", "float", 1e-6, _OTHER_OPTIMIZER),
    idle("--anneal-eps", "switch", False, _OTHER_OPTIMIZER),
    idle("--adamax-betas", "text", "(0.9, 0.999)", _OTHER_OPTIMIZER),
    idle("--adamax-eps", "float", 1e-8, _OTHER_OPTIMIZER),
    idle("--no-bias-correction", "switch", False, _OTHER_OPTIMIZER),
    idle("--lamb-betas", "text", "(0.9, 0.999)", _OTHER_OPTIMIZER),
    idle("--lamb-eps", "float", 1e-8, _OTHER_OPTIMIZER),
    idle("--groups", "text", "{}", _OTHER_OPTIMIZER),
    idle("--dynamic-groups", "switch", False, _OTHER_OPTIMIZER),
    becomes("--lr-scheduler", "text", "fixed", "scheduler.name"),
    becomes("--warmup-updates", "int", None, "scheduler.warmup_updates"),
    becomes("--warmup-init-lr", "float", -1.0, "scheduler.warmup_init_lr"),
    becomes("--min-lr", "float", 0.0, "scheduler.min_lr"),
    idle("--stop-min-lr", "float", -1.0, "training ends with train.max_updates or max_epochs"),
    becomes("--lr-period-updates", "float", -1.0, "scheduler.total_updates"),
    refused("--t-mult", "float", 1.0, "the cosine has one period"),
    idle("--lr-shrink", "float", 0.1, "there is no second period, and no annealing"),
    becomes("--end-learning-rate", "float", 0.0, "scheduler.end_lr"),
    becomes("--power", "float", 1.0, "scheduler.power"),
    becomes("--total-num-update", "float", None, "scheduler.total_updates"),
    refused("--force-anneal", "int", None, "schedules count updates, not epochs"),
    idle("--epoch2lr", "text", "{}", _OTHER_SCHEDULE),
    idle("--update2lr", "text", "{}", _OTHER_SCHEDULE),
    idle("--lr-threshold", "float", 1e-4, _OTHER_SCHEDULE),
    idle("--lr-patience", "int", 0, _OTHER_SCHEDULE),
    idle("--lr-deacy-period", "int", 25000, _OTHER_SCHEDULE),
    idle("--lr-decay", "float", 0.5, _OTHER_SCHEDULE),
    idle("--warmup-steps", "int", 0, _OTHER_SCHEDULE),
    idle("--hold-steps", "int", 0, _OTHER_SCHEDULE),
    idle("--decay-steps", "int", 0, _OTHER_SCHEDULE),
    idle("--phase-ratio", "text", None, _OTHER_SCHEDULE),
    idle("--init-lr-scale", "float", 0.01, _OTHER_SCHEDULE),
    idle("--final-lr-scale", "float", 0.01, _OTHER_SCHEDULE),
    idle("--max-lr", "float", None, _OTHER_SCHEDULE),
    idle("--shrink-min", "switch", False, _OTHER_SCHEDULE),
)  # fmt: skip
"""The flags of optimizer and schedule."""
