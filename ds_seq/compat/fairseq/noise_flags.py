"""Flags of `fairseq-train` that only `denoising`, `masked_lm` and their models have."""

from __future__ import annotations

from ds_seq.compat.fairseq.flag import Flag, becomes, copied, idle, refused

_CLASSES = "of tasks with classes, which there are none of here"
_DATA2VEC = "data2vec is not supported; leave it out"
_PRUNED = "adaptive pruning is not supported; leave it out"
_SPANS = "what is masked is single words, or spans; leave it out"
_ALL = ("task.noise.infill", "task.noise.mask", "task.noise.delete")

NOISE_FLAGS: tuple[Flag, ...] = (
    becomes("--mask", "float", 0.0, ", ".join(_ALL), "which one, --mask-length says"),
    becomes("--mask-length", "text", "subword", f"{_ALL[0]}, {_ALL[1]}, {_ALL[2]}",
            "`span-poisson` infill, `subword` and `word` mask or delete"),
    becomes("--replace-length", "int", 0, ", ".join(_ALL)),
    copied("--mask-random", "float", 0.0, "task.noise.random"),
    copied("--poisson-lambda", "float", 3.0, "task.noise.span_mean"),
    copied("--permute-sentences", "float", -1, "task.noise.permute_sentences"),
    copied("--rotate", "float", 0.5, "task.noise.rotate"),
    refused("--insert", "float", 0.0, "no tokens are inserted, but empty spans; leave it out"),
    idle("--permute", "float", 0.0, "fairseq does not read it"),
    idle("--shuffle-instance", "float", 0.0, "batches are always in random order"),
    copied("--mask-prob", "float", 0.15, "task.predicted"),
    copied("--random-token-prob", "float", 0.1, "task.random_tokens"),
    copied("--leave-unmasked-prob", "float", 0.1, "task.kept_tokens"),
    copied("--mask-whole-words", "switch", False, "task.whole_words"),
    refused("--freq-weighted-replacement", "switch", False, "random tokens are all alike"),
    refused("--mask-multiple-length", "int", 1, _SPANS),
    refused("--mask-stdev", "float", 0.0, _SPANS),
    refused("--include-target-tokens", "switch", False, _DATA2VEC),
    idle("--include-index", "off", True, _DATA2VEC),
    refused("--skip-masking", "switch", False, _DATA2VEC),
    refused("--d2v2-multi", "switch", False, _DATA2VEC),
    becomes("--max-positions", "int", None, "model.max_positions"),
    becomes("--untie-weights-roberta", "switch", False, "model.share_embeddings"),
    idle("--pooler-activation-fn", "text", "tanh", _CLASSES),
    idle("--pooler-dropout", "float", 0.0, _CLASSES),
    idle("--load-checkpoint-heads", "switch", False, _CLASSES),
    idle("--spectral-norm-classification-head", "switch", False, _CLASSES),
    refused("--mha-reg-scale-factor", "float", 0.0, _PRUNED),
    refused("--ffn-reg-scale-factor", "float", 0.0, _PRUNED),
    refused("--mha-heads-to-keep", "int", -1, _PRUNED),
    refused("--ffn-blocks-to-remove", "int", -1, _PRUNED),
)  # fmt: skip
"""The flags of both tasks, and of RoBERTa."""
