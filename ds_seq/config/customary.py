"""Option and command names of other toolkits and their equivalents in ds_seq: one table.

It answers unknown keys (`ds-seq check`) and unknown commands, and `ds-seq check --names` generates
`docs/COMING_FROM.md` from it. For that page it also has names that are keys of ds_seq, too, whose
home the loader finds by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ds_seq.config.customary_rows import ONE_SIDED, Row

_BATCH = "(batches are sized by tokens; train.accumulate sets the batches per update)"
_LAYERS = "model.encoder_layers and model.decoder_layers"
_LENGTHS = "data.max_source_length and data.max_target_length"
_TRANSLATION_LENGTH = "generation.max_len_a and generation.max_len_b"
_SHARE = "model.share_embeddings (none, decoder, inputs, all)"
_SAME_SIZE = "(validation has batches of the same size)"
_ZERO = "zero_optimization.stage in the DeepSpeed JSON that train.deepspeed names"

# fmt: off
NAMES: Mapping[str, tuple[Row, ...]] = {
    "Model": (
        Row("model.preset", "arch"),
        Row("model.adapters.ids", "encoder-adapter-ids decoder-adapter-ids", "", "", "",
            "adapter_ids"),
        Row("model.adapters.reduction",
            "encoder-adapter-reduction-factor decoder-adapter-reduction-factor",
            "reduction_factor"),
        Row("model.adapters.gate", "encoder-adapter-use-gating decoder-adapter-use-gating"),
        Row("model.adapters.activation", "adapter-activation-fn"),
        Row("model.adapters.active (train.trainable: [adapters.ID] trains only that one)",
            "encoder-train-adapter decoder-train-adapter"),
        Row("model.lora.rank", "", "", "lora_rank", "", "lora_r"),
        Row("model.lora.alpha", "", "lora_alpha"),
        Row("model.lora.dropout", "", "", "lora_dropout"),
        Row("model.lora.modules", "", "target_modules", "lora_layers"),
        Row("model.lora.rank_stabilized", "", "use_rslora"),
        Row("train.allow_missing: [adapters]", "load-checkpoint-liberally"),
        Row("model.adapters.active or `ds-seq generate --adapter ID`",
            "activate-encoder-adapter activate-decoder-adapter"),
        Row("model.d_model", "encoder-embed-dim decoder-embed-dim", "d_model hidden_size n_embd",
            "hidden_size word_vec_size", "dim-emb",
            "hidden_dim model_dim embed_dim embedding_dim dim"),
        Row("model.encoder_layers", "encoder-layers", "encoder_layers", "enc_layers", "enc-depth",
            "num_encoder_layers"),
        Row("model.decoder_layers", "decoder-layers", "decoder_layers", "dec_layers", "dec-depth",
            "num_decoder_layers"),
        Row(_LAYERS, "", "num_layers num_hidden_layers n_layer", "layers", "", "n_layers"),
        Row("model.encoder_repeats and model.decoder_repeats",
            "encoder-recurrent-stacking decoder-recurrent-stacking"),
        Row("model.num_heads", "encoder-attention-heads decoder-attention-heads",
            "num_attention_heads encoder_attention_heads decoder_attention_heads n_head", "heads",
            "transformer-heads", "attention_heads n_heads nhead"),
        Row("model.ffn_dim", "encoder-ffn-embed-dim decoder-ffn-embed-dim",
            "encoder_ffn_dim decoder_ffn_dim intermediate_size d_ff n_inner", "transformer_ff",
            "transformer-dim-ffn", "dim_feedforward ff_size ffn_size"),
        Row("model.activation", "activation-fn", "activation_function hidden_act",
            "pos_ffn_activation_fn", "transformer-ffn-activation"),
        Row("model.linear: bitnet", "", "linear_class", "", "", "bitnet bitlinear use_bitlinear"),
        Row("model.linear: {name: bitnet, norm: rms or none}", "", "use_rms_norm"),
        Row("model.dropout", "dropout", "dropout hidden_dropout_prob dropout_rate resid_pdrop",
            "dropout", "transformer-dropout", "hidden_dropout dropout_prob residual_dropout"),
        Row("model.attention_dropout", "attention-dropout",
            "attention_dropout attention_probs_dropout_prob attn_pdrop", "attention_dropout",
            "transformer-dropout-attention", "attn_dropout"),
        Row("model.activation_dropout", "activation-dropout relu-dropout", "activation_dropout", "",
            "transformer-dropout-ffn", "ffn_dropout"),
        Row("model.norm_position (pre, post, deepnorm, subln)",
            "encoder-normalize-before decoder-normalize-before", "", "",
            "transformer-preprocess transformer-postprocess",
            "pre_norm layer_norm normalize_before"),
        Row("model.norm_position: deepnorm or subln", "deepnorm subln"),
        Row("model.norm: rms", "replace-layernorm-with-rmsnorm", "rms_norm_eps", "", "", "rmsnorm"),
        Row("model.multiway", "multiway"),
        Row("model.query_key_norm", "", "use_qk_norm qk_norm", "", "", "qk_layernorm"),
        Row("model.layer_drop", "encoder-layerdrop decoder-layerdrop",
            "encoder_layerdrop decoder_layerdrop layerdrop"),
        Row("model.drop_path", "drop-path-rate", "drop_path_rate", "", "", "stochastic_depth"),
        Row("model.norm: {name: layer, eps: ...}", "", "layer_norm_eps layer_norm_epsilon"),
        Row("model.positions", "", "position_embedding_type", "position_encoding", "",
            "position_encoding_type"),
        Row("model.positions: learned", "encoder-learned-pos decoder-learned-pos", "", "",
            "transformer-train-position-embeddings", "learned_pos"),
        Row("model.positions: none", "no-token-positional-embeddings"),
        Row("model.positions: {name: rotary, theta: ..., scaling: ...}", "rope-args",
            "rope_theta rope_scaling", "rotary_interleave rotary_theta", "", "rope_base"),
        Row("model.positions: {name: buckets, num_buckets: ..., max_distance: ...}",
            "rel-pos-buckets max-rel-pos",
            "relative_attention_num_buckets relative_attention_max_distance",
            "relative_positions_buckets"),
        Row("model.positions: {name: xpos, scale_base: ...}", "xpos-rel-pos xpos-scale-base"),
        Row("model.num_kv_heads", "", "num_key_value_heads", "num_kv", "", "n_kv_heads"),
        Row("model.pruned_heads", "", "pruned_heads"),
        Row("model.attention_window", "", "attention_window_size", "", "", "window_size"),
        Row("model.decoder_mixer: {name: retention, num_heads: ..., value_width: ...}",
            "decoder-retention-heads decoder-value-embed-dim"),
        Row("model.decoder_mixer: {name: retention, chunk_size: ...}",
            "chunkwise-recurrent recurrent-chunk-size"),
        Row("model.name: recurrent", "", "", "", "", "rnn_type"),
        Row("model.encoder_hidden_dim, model.decoder_hidden_dim (of LSTM models)",
            "encoder-hidden-size decoder-hidden-size", "", "rnn_size"),
        Row("model.bidirectional (of LSTM models)", "encoder-bidirectional", "", "brnn"),
        Row("model.attention (of LSTM models)", "decoder-attention", "", "global_attention"),
        Row("model.input_feeding (of LSTM models)", "", "", "input_feed"),
        Row("model.output_dim (of LSTM models)", "decoder-out-embed-dim"),
        Row("model.encoder_mixer: {name: dilated, segment_lengths: [...], dilations: [...]}",
            "segment-length dilated-ratio"),
        Row("model.encoder_mixer, model.decoder_mixer: lightweight_convolution or "
            "dynamic_convolution", "encoder-conv-type decoder-conv-type"),
        Row("model.decoder_mixer: {name: dynamic_convolution, kernel_sizes: ..., width: ..., "
            "glu: ...}", "encoder-kernel-size-list decoder-kernel-size-list encoder-conv-dim "
            "decoder-conv-dim encoder-glu decoder-glu weight-softmax weight-dropout input-dropout"),
        Row("model.embedding_dim", "encoder-factorized-embed-dim decoder-factorized-embed-dim", "",
            "", "lemma-dim-emb", "embedding_size"),
        Row("model.adaptive: {cutoffs: [...], factor: ..., input: ..., tie_projections: ..., "
            "softmax_dropout: ...}", "adaptive-input adaptive-input-cutoff adaptive-input-factor "
            "adaptive-softmax-cutoff adaptive-softmax-factor adaptive-softmax-dropout "
            "tie-adaptive-weights tie-adaptive-proj", "cutoffs div_val"),
        Row("model.character_embeddings: {filters: ..., embedding_dim: ..., highway_layers: ...}",
            "character-embeddings character-filters character-embedding-dim "
            "char-embedder-highway-layers"),
        Row("model.final_norm (of decoder_only)", "no-decoder-final-norm"),
        Row("model.embedding_scale", "no-scale-embedding", "scale_embedding"),
        Row("model.embedding_norm", "layernorm-embedding", "", "", "", "normalize_embedding"),
        Row("model.max_positions", "max-source-positions max-target-positions",
            "max_position_embeddings n_positions n_ctx", "", "", "max_seq_len"),
        Row(_SHARE, "share-all-embeddings share-decoder-input-output-embed", "tie_word_embeddings",
            "share_embeddings share_decoder_embeddings",
            "tied-embeddings tied-embeddings-all tied-embeddings-src",
            "tie_embeddings tied_softmax"),
        Row("model.activation_checkpointing", "checkpoint-activations", "gradient_checkpointing",
            "", "gradient-checkpointing"),
    ),
    "Experts": (
        Row("model.moe.num_experts", "moe-expert-count", "num_local_experts num_experts", "", "",
            "n_experts"),
        Row("model.moe.top_k", "", "num_experts_per_tok"),
        Row("model.moe.every", "moe-freq encoder-moe-freq decoder-moe-freq",
            "encoder_sparse_step decoder_sparse_step"),
        Row("criterion.loss_weights.load_balance", "moe-gate-loss-wt", "router_aux_loss_coef"),
        Row("criterion.loss_weights.router_z", "", "router_z_loss_coef"),
    ),
    "Distillation": (
        Row("criterion.teacher", "teacher-checkpoint-path", "teacher_model"),
        Row("criterion.strategy", "kd-strategy"),
        Row("criterion.rate", "kd-rate"),
        Row("criterion.queue_size", "kd-queue-size"),
        Row("criterion.divergence", "kd-criterion"),
        Row("criterion.kd_weight", "", "alpha_ce"),
        Row("criterion.ce_weight", "", "alpha_mlm"),
        Row("criterion.hidden.weight", "", "alpha_hid"),
        Row("criterion.hidden.normalize", "", "normalize_hidden"),
        Row("criterion.hidden.match (supervise; else copy)", "", "supervise_forward"),
        Row("model.encoder_layers (of ds-seq make-student)", "", "student_encoder_layers"),
        Row("model.decoder_layers (of ds-seq make-student)", "", "student_decoder_layers"),
    ),
    "Criterion, optimizer and schedule": (
        Row("criterion", "", "", "", "cost-type", "loss loss_fn"),
        Row("criterion.label_smoothing", "label-smoothing", "label_smoothing_factor",
            "label_smoothing", "label-smoothing", "smoothing_factor"),
        Row("criterion.r_drop", "reg-alpha"),
        Row("optimizer.name", "", "optim", "optim"),
        Row("optimizer.lr", "lr", "learning_rate", "learning_rate", "learn-rate", "max_lr"),
        Row("optimizer.betas", "adam-betas", "adam_beta1 adam_beta2", "adam_beta1 adam_beta2",
            "optimizer-params", "beta1 beta2"),
        Row("optimizer.eps", "adam-eps", "adam_epsilon", "", "", "epsilon"),
        Row("optimizer.weight_decay", "weight-decay", "weight_decay", "weight_decay", "", "l2"),
        Row("scheduler.name", "lr-scheduler", "lr_scheduler_type", "decay_method", "",
            "scheduling"),
        Row("scheduler.name: inverse_sqrt", "", "", "", "lr-decay-inv-sqrt"),
        Row("scheduler.warmup_updates", "warmup-updates", "warmup_steps", "warmup_steps",
            "lr-warmup", "warmup num_warmup_steps warmup_iters learning_rate_warmup"),
        Row("scheduler.warmup_init_lr", "warmup-init-lr", "", "", "lr-warmup-start-rate"),
        Row("scheduler.total_updates", "total-num-update", "", "", "",
            "total_num_updates decay_steps"),
        Row("scheduler.min_lr (cosine), scheduler.end_lr (others)",
            "end-learning-rate", "", "", "", "learning_rate_min"),
    ),
    "Training": (
        Row(f"train.max_tokens {_BATCH}", "max-tokens", "max_tokens_per_batch", "",
            "mini-batch-words mini-batch-fit",
            "micro_batch_size"),
        Row(f"train.max_tokens, or train.max_sentences {_BATCH}", "batch-size",
            "per_device_train_batch_size", "batch_size", "mini-batch", "train_batch_size"),
        Row(f"train.max_tokens {_SAME_SIZE}", "max-tokens-valid", "", "", "valid-mini-batch"),
        Row(f"train.max_sentences {_SAME_SIZE}", "batch-size-valid",
            "per_device_eval_batch_size", "valid_batch_size"),
        Row("train.accumulate", "update-freq", "gradient_accumulation_steps", "accum_count",
            "optimizer-delay", "grad_accum grad_accum_steps batch_multiplier"),
        Row("train.clip_norm", "clip-norm", "max_grad_norm", "max_grad_norm", "clip-norm",
            "clip clip_grad clip_grad_norm grad_clip gradient_clip gradient_clip_val max_norm"),
        Row("train.ema: {decay: ..., every: ...}",
            "store-ema ema-decay ema-update-freq ema-fp32", "", "average_decay average_every",
            "exponential-smoothing", "use_ema ema_rate"),
        Row("train.max_updates", "max-update", "max_steps", "train_steps", "after-batches",
            "max_iters num_train_steps steps updates"),
        Row("train.max_epochs", "max-epoch", "num_train_epochs", "", "after-epochs",
            "epochs num_epochs"),
        Row("train.max_hours", "stop-time-hours"),
        Row("train.patience", "patience", "early_stopping_patience", "early_stopping",
            "early-stopping"),
        Row("train.precision: fp16", "fp16", "fp16"),
        Row("train.precision: bf16", "bf16", "bf16", "", "", "bfloat16"),
        Row("train.precision (fp32, bf16, fp16)", "", "torch_dtype", "model_dtype", "precision",
            "mixed_precision amp half dtype"),
        Row(_ZERO, "ddp-backend zero-sharding", "", "", "", "zero_stage zero fsdp"),
        Row("train.seed", "seed", "seed", "seed", "seed", "random_seed"),
        Row("train.log_every", "log-interval", "logging_steps", "report_every", "disp-freq",
            "logging_freq"),
        Row("train.validate_every", "validate-interval-updates validate-interval", "eval_steps",
            "valid_steps", "valid-freq", "validation_freq valid_interval eval_interval"),
        Row("train.save_every (null saves at each validation)",
            "save-interval-updates save-interval", "save_steps", "save_checkpoint_steps",
            "save-freq"),
        Row("train.keep_last", "keep-last-epochs keep-interval-updates", "save_total_limit",
            "keep_checkpoint"),
        Row("train.keep_best", "keep-best-checkpoints", "save_top_k", "", "keep-best",
            "keep_best_ckpts"),
        Row("run_dir", "save-dir", "output_dir", "save_model", "model", "model_dir"),
        Row("train.init_from", "finetune-from-model restore-file", "model_name_or_path",
            "train_from",
            "pretrained-model", "load_model"),
        Row("train.num_prefetch", "", "dataloader_num_workers"),
        Row("train.num_prefetch (training), data.workers (binarizing)", "num-workers"),
        Row("train.tensorboard (true; files go into the run folder)", "tensorboard-logdir"),
        Row("validation.best", "best-checkpoint-metric", "metric_for_best_model val_metric", "",
            "", "early_stopping_metric"),
        Row("validation.max_sentences", "", "n_val max_eval_samples"),
        Row("train.batch_order (sorted, sortish)", "", "sortish_sampler group_by_length"),
        Row("train.freeze: [encoder]", "", "freeze_encoder"),
        Row("train.freeze: [embeddings]", "", "freeze_embeds"),
        Row("validation.metrics", "eval-bleu", "", "valid_metrics", "valid-metrics"),
    ),
    "Data": (
        Row("data.source_lang", "source-lang", "source_lang", "", "",
            "src src_lang source_language"),
        Row("data.target_lang", "target-lang", "target_lang", "", "",
            "tgt trg tgt_lang target_language"),
        Row("data.raw.train", "trainpref", "train_file", "path_src path_tgt train_src train_tgt",
            "train-sets"),
        Row("data.raw.valid", "validpref", "validation_file", "valid_src valid_tgt",
            "valid-sets"),
        Row("data.raw.test", "testpref", "test_file"),
        Row("data.dir", "destdir", "", "save_data"),
        Row("data.vocab.size", "nwordssrc nwordstgt", "vocab_size", "src_vocab_size tgt_vocab_size",
            "dim-vocabs"),
        Row("data.vocab.normalization", "", "", "", "",
            "normalization_rule_name normalization_rule_tsv"),
        Row("data.vocab.user_symbols", "", "", "", "", "user_defined_symbols"),
        Row("data.vocab.fairseq.dictionary", "srcdict tgtdict"),
        Row("data.vocab.fairseq.codes", "bpe-codes"),
        Row("data.vocab.fairseq.sentencepiece", "sentencepiece-model"),
        Row("data.vocab.joint", "joined-dictionary", "", "share_vocab"),
        Row("data.vocab.byte_fallback", "", "", "", "", "byte_fallback"),
        Row("data.vocab.character_coverage", "", "", "", "", "character_coverage"),
        Row("data.dir (it holds the vocabulary)", "", "", "src_vocab tgt_vocab", "vocabs"),
        Row("data.max_source_length", "", "max_source_length", "src_seq_length", "",
            "max_source_len"),
        Row("data.max_target_length", "", "max_target_length", "tgt_seq_length", "",
            "max_target_len"),
        Row(_LENGTHS, "", "", "", "max-length"),
        Row("data.long_pairs (skip, truncate_source, truncate)", "truncate-source", "truncation"),
        Row("data.raw (a folder with {train,val,test}.{source,target})", "", "data_dir"),
    ),
    "Language models and pre-training": ONE_SIDED,
    "Translation": (
        Row("generation.beam", "beam", "num_beams eval_beams", "beam_size", "beam-size"),
        Row("generation.length_penalty", "lenpen", "length_penalty", "alpha", "normalize",
            "beam_alpha"),
        Row("generation.unk_penalty", "unkpen"),
        Row("generation.no_repeat_ngram", "no-repeat-ngram-size", "no_repeat_ngram_size",
            "block_ngram_repeat"),
        Row(_TRANSLATION_LENGTH, "max-len-a max-len-b",
            "max_new_tokens eval_max_gen_length val_max_target_length "
            "test_max_target_length", "", "max-length-factor",
            "max_output_length"),
        Row("generation.min_len", "min-len", "min_length", "min_length"),
        Row("generation.expert", "gen-expert"),
        Row("generation.lm", "lm-path"),
        Row("generation.lm_weight", "lm-weight"),
        Row("generation.shortlist", "", "", "", "shortlist"),
        Row("generation.sampling", "sampling", "do_sample", "", "output-sampling"),
        Row("generation.sampling_top_k", "sampling-topk", "", "random_sampling_topk"),
        Row("generation.sampling_top_p", "sampling-topp", "top_p", "random_sampling_topp"),
        Row("generation.temperature", "temperature", "temperature", "random_sampling_temp"),
        Row("generation.diverse_groups", "diverse-beam-groups", "num_beam_groups"),
        Row("generation.diverse_strength", "diverse-beam-strength", "diversity_penalty"),
        Row("generation.diverse_siblings", "diversity-rate"),
        Row("generation.max_sentences", "", "", "", "", "eval_batch_size"),
    ),
}
# fmt: on

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "prepare": ("fairseq-preprocess", "", "onmt_build_vocab", "marian-vocab", "preprocess"),
    "train": (
        "fairseq-train fairseq-hydra-train",
        "run_translation run_clm run_mlm",
        "onmt_train",
        "marian",
        "fit",
    ),
    "generate": ("fairseq-generate", "", "onmt_translate", "marian-decoder", "translate decode"),
    "interactive": ("fairseq-interactive", "", "", "marian-server", "repl"),
    "score": ("fairseq-score", "sacrebleu", "", "", "evaluate bleu"),
    "rescore": ("", "", "", "marian-scorer", "force-decode"),
    "perplexity": ("fairseq-eval-lm", "", "", "", "eval-lm"),
    "average": ("average_checkpoints", "", "onmt_average_models", "", "average-checkpoints"),
    "export": ("", "", "onmt_release_model", "marian-conv", "convert"),
}
"""Command -> names of the same step: by toolkit, in the order of `TOOLKITS`, and others."""


def rows() -> Iterator[Row]:
    """Yield all rows of the table."""
    for part in NAMES.values():
        yield from part


def _by_name() -> dict[str, str]:
    return {
        name.replace("-", "_"): row.ours
        for row in rows()
        for column in (*row.columns, row.other)
        for name in column.split()
    }


CUSTOMARY: Mapping[str, str] = _by_name()
"""Option of another toolkit, with underscores for hyphens -> option of ds_seq."""

_BY_SECTION: Mapping[tuple[str, str], str] = {
    ("generation", "batch_size"): "generation.max_sentences",
    ("generation", "top_k"): "generation.sampling_top_k",
    ("generation", "epsilon"): "generation.sampling_epsilon",
}
"""Names that mean something else in one section than in the others."""


def customary(key: str, section: str) -> str | None:
    """Return ds_seq's name for a key of another toolkit, or None if the key is unknown.

    Args:
        key: name of the key, with underscores.
        section: dotted path of the section that contains it.
    """
    return _BY_SECTION.get((section, key)) or CUSTOMARY.get(key)


def customary_command(name: str) -> str | None:
    """Return ds_seq's command for the step that another toolkit calls `name`, or None."""
    wanted = name.replace("_", "-").lower()
    for ours, columns in COMMANDS.items():
        if wanted in {each.replace("_", "-") for column in columns for each in column.split()}:
            return ours
    return None
