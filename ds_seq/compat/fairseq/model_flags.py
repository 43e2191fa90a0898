"""Flags of `fairseq-train` that describe the model, with those of its two descendants.

The descendants are VarunGumma/fairseq (recurrent stacking, adapters, factorized embeddings, gated
activations, RMS norm) and the Transformer with DeepSpeed's experts.
"""

from __future__ import annotations

from ds_seq.compat.fairseq.flag import Flag, becomes, copied, idle, refused

_ADAPTIVE = "of language models; refused for others"
_FROZEN = "embeddings that are not trained are not supported; leave it out"
_QUANT = "quantization noise is not supported; leave it out"
_TWO_WIDTHS = "the stacks have one width, and the output is as wide"
_PIPELINE = "pipeline parallelism is not supported; use ZeRO stage 3 in the DeepSpeed JSON"
_KEPT = "for `ds-seq generate`, whose option has the same name, or `ds-seq export`"
_FORCED = "the Transformer with experts ignores it: it sets the value itself"
_ALIGNED = "there is no supervised alignment; `ds-seq generate --align` reads the attention"
_PRETRAINED = "embeddings from a text file are not supported; leave it out"
_ONE_FOR_BOTH = "one value for both stacks"
_ONE_WIDTH = "one value for both stacks of a Transformer"
_PER_TOKEN = "per token; there it is a mean over the sentences of a batch"
_CROSS_TOO = "one value for both stacks, and for cross-attention, which has all heads there"

MODEL_FLAGS: tuple[Flag, ...] = (
    becomes("--arch -a", "text", None, "model"),
    copied("--dropout", "float", 0.1, "model.dropout"),
    copied("--attention-dropout", "float", 0.0, "model.attention_dropout"),
    becomes("--activation-dropout", "float", 0.0, "model.activation_dropout"),
    becomes("--relu-dropout", "float", 0.0, "model.activation_dropout"),
    becomes("--activation-fn", "text", "relu", "model.activation"),
    becomes(
        "--encoder-embed-dim", "int", 512, "model.d_model, model.encoder_embedding_dim", _ONE_WIDTH
    ),
    becomes(
        "--decoder-embed-dim", "int", None, "model.d_model, model.decoder_embedding_dim", _ONE_WIDTH
    ),
    becomes("--encoder-ffn-embed-dim", "int", 2048, "model.ffn_dim", _ONE_FOR_BOTH),
    becomes("--decoder-ffn-embed-dim", "int", None, "model.ffn_dim", _ONE_FOR_BOTH),
    becomes("--encoder-layers", "int", 6, "model.encoder_layers"),
    becomes("--decoder-layers", "int", 6, "model.decoder_layers"),
    becomes("--encoder-attention-heads", "int", 8, "model.num_heads", _ONE_FOR_BOTH),
    becomes("--decoder-attention-heads", "int", 8, "model.num_heads", _ONE_FOR_BOTH),
    becomes("--encoder-kv-attention-heads", "int", None, "model.num_kv_heads", _CROSS_TOO),
    becomes("--decoder-kv-attention-heads", "int", None, "model.num_kv_heads", _CROSS_TOO),
    becomes("--encoder-normalize-before", "switch", False, "model.norm_position"),
    becomes("--decoder-normalize-before", "switch", False, "model.norm_position"),
    becomes("--encoder-learned-pos", "switch", False, "model.positions"),
    becomes("--decoder-learned-pos", "switch", False, "model.positions"),
    becomes("--no-token-positional-embeddings", "switch", False, "model.positions"),
    becomes(
        "--rope-args", "json", None, "model.positions",
        "all of a head is rotated; there it is the first half",
    ),  # fmt: skip
    becomes("--alibi-args", "json", None, "model.positions"),
    becomes("--encoder-layerdrop", "float", 0.0, "model.layer_drop", _ONE_FOR_BOTH),
    becomes("--decoder-layerdrop", "float", 0.0, "model.layer_drop", _ONE_FOR_BOTH),
    becomes(
        "--max-source-positions", "int", 1024, "data.max_source_length, model.max_positions"
    ),
    becomes(
        "--max-target-positions", "int", 1024, "data.max_target_length, model.max_positions"
    ),
    becomes("--share-decoder-input-output-embed", "switch", False, "model.share_embeddings"),
    becomes("--share-all-embeddings", "switch", False, "model.share_embeddings"),
    becomes("--layernorm-embedding", "switch", False, "model.embedding_norm"),
    becomes("--no-scale-embedding", "switch", False, "model.embedding_scale"),
    becomes("--checkpoint-activations", "switch", False, "model.activation_checkpointing"),
    becomes(
        "--offload-activations", "switch", False, "model.activation_checkpointing",
        "activations are computed again, not kept in host memory",
    ),
    becomes("--encoder-recurrent-stacking", "int", None,
            "model.encoder_layers, model.encoder_repeats"),
    becomes("--decoder-recurrent-stacking", "int", None,
            "model.decoder_layers, model.decoder_repeats"),
    becomes("--encoder-factorized-embed-dim", "int", None, "model.embedding_dim", _ONE_FOR_BOTH),
    becomes("--decoder-factorized-embed-dim", "int", None, "model.embedding_dim", _ONE_FOR_BOTH),
    becomes("--factorized-embed-activation-fn", "text", "linear", "model.embedding_dim"),
    becomes("--replace-layernorm-with-rmsnorm", "switch", False, "model.norm"),
    becomes("--encoder-use-rmsnorm", "switch", False, "model.norm", _ONE_FOR_BOTH),
    becomes("--decoder-use-rmsnorm", "switch", False, "model.norm", _ONE_FOR_BOTH),
    becomes("--encoder-use-glu", "switch", False, "model.activation", _ONE_FOR_BOTH),
    becomes("--decoder-use-glu", "switch", False, "model.activation", _ONE_FOR_BOTH),
    idle("--attn-implementation", "text", "fairseq", "attention always takes the fused kernels"),
    becomes("--lora-args", "json", None, "model.lora, train.trainable"),
    becomes("--encoder-add-adapters", "switch", False, "model.adapters.stacks"),
    becomes("--decoder-add-adapters", "switch", False, "model.adapters.stacks"),
    becomes("--encoder-adapter-reduction-factor", "int", None, "model.adapters.reduction"),
    becomes("--decoder-adapter-reduction-factor", "int", None, "model.adapters.reduction"),
    becomes("--encoder-adapter-ids", "text", None, "model.adapters.ids"),
    becomes("--decoder-adapter-ids", "text", None, "model.adapters.ids"),
    becomes("--encoder-train-adapter", "text", None, "model.adapters.active, train.trainable"),
    becomes("--decoder-train-adapter", "text", None, "model.adapters.active, train.trainable"),
    becomes("--encoder-adapter-use-gating", "switch", False, "model.adapters.gate", _PER_TOKEN),
    becomes("--decoder-adapter-use-gating", "switch", False, "model.adapters.gate", _PER_TOKEN),
    becomes("--adapter-activation-fn", "text", "relu", "model.adapters.activation"),
    refused("--encoder-use-mlp", "switch", False, "no such feed-forward; leave it out"),
    refused("--decoder-use-mlp", "switch", False, "no such feed-forward; leave it out"),
    # lightweight and dynamic convolutions
    becomes("--encoder-conv-type", "text", "dynamic", "model.encoder_mixer"),
    becomes("--decoder-conv-type", "text", "dynamic", "model.decoder_mixer"),
    becomes("--encoder-conv-dim", "int", None, "model.encoder_mixer.width"),
    becomes("--decoder-conv-dim", "int", None, "model.decoder_mixer.width"),
    becomes("--encoder-kernel-size-list", "list", None, "model.encoder_mixer.kernel_sizes"),
    becomes("--decoder-kernel-size-list", "list", None, "model.decoder_mixer.kernel_sizes"),
    becomes("--encoder-glu", "text", "True", "model.encoder_mixer.glu"),
    becomes("--decoder-glu", "text", "True", "model.decoder_mixer.glu"),
    becomes("--weight-softmax", "text", "True",
            "model.encoder_mixer.weight_softmax, model.decoder_mixer.weight_softmax"),
    becomes("--weight-dropout", "float", None,
            "model.encoder_mixer.weight_dropout, model.decoder_mixer.weight_dropout"),
    becomes("--input-dropout", "float", 0.1,
            "model.encoder_mixer.input_dropout, model.decoder_mixer.input_dropout"),
    # LSTM models
    becomes("--encoder-hidden-size", "int", None, "model.encoder_hidden_dim"),
    becomes("--decoder-hidden-size", "int", None, "model.decoder_hidden_dim"),
    becomes("--decoder-out-embed-dim", "int", 512, "model.output_dim"),
    becomes("--encoder-bidirectional", "switch", False, "model.bidirectional"),
    becomes("--decoder-attention", "text", "1", "model.attention"),
    becomes("--encoder-dropout-in", "float", None, "model.encoder_dropout_in"),
    becomes("--encoder-dropout-out", "float", None, "model.encoder_dropout_out"),
    becomes("--decoder-dropout-in", "float", None, "model.decoder_dropout_in"),
    becomes("--decoder-dropout-out", "float", None, "model.decoder_dropout_out"),
    refused("--encoder-freeze-embed", "switch", False, _FROZEN),
    refused("--decoder-freeze-embed", "switch", False, _FROZEN),
    # experts
    becomes("--deepspeed_moe", "text", "", "model.moe.placement"),
    copied("--num-experts", "int", 1, "model.moe.num_experts"),
    copied("--top-k", "int", 1, "model.moe.top_k"),
    copied("--ep-world-size", "int", 1, "train.expert_parallel"),
    idle("--min-capacity", "int", 0, _FORCED),
    idle("--noisy-gate-policy", "text", None, _FORCED),
    idle("--moe-param-group", "switch", False, "parameters are grouped as DeepSpeed needs them"),
    idle("--deepspeed", "switch", False, "training always runs on DeepSpeed"),
    refused("--deepspeed_config", "text", None, "merge the file into the DeepSpeed JSON yourself"),
    idle("--deepscale", "switch", False, "an old name of --deepspeed"),
    idle("--deepscale_config", "text", None, "an old name of --deepspeed_config"),
    # experts of the branch `moe`
    becomes("--moe-freq", "int", 0, "model.moe.layers"),
    becomes("--encoder-moe-freq", "int", 0, "model.moe.layers"),
    becomes("--decoder-moe-freq", "int", 0, "model.moe.layers"),
    becomes("--moe-expert-count", "int", 0, "model.moe.num_experts"),
    becomes("--moe-top1-expert", "switch", False, "model.moe.top_k"),
    becomes("--moe-second-expert-policy", "text", "sampling", "model.moe.second_expert",
            "in training only; fairseq draws in evaluation, too"),
    becomes("--moe-normalize-gate-prob-before-dropping", "switch", False,
            "model.moe.normalize_weights"),
    becomes("--moe-batch-prioritized-routing", "switch", False, "model.moe.drop"),
    becomes("--moe-eval-capacity-token-fraction", "float", 0.25, "model.moe.eval_capacity_factor"),
    idle("--moe-gating-use-fp32", "switch", False, "routers are always in fp32"),
    idle("--moe-expert-ffn-dim", "int", 0, "translation models do not read it"),
    idle("--moe-normalize-expert-grad", "text", "world_size",
         "a gradient is a mean over all tokens"),
    idle("--use-moe-pad-mask", "switch", False, "padding never takes a place"),
    refused("--alternate-ffn-embed-dim", "int", 0, "there are no dense layers of another width"),
    refused("--alternate-decoder-ffn-embed-dim", "int", 0, "as --alternate-ffn-embed-dim"),
    # what has no counterpart
    becomes("--adaptive-input", "switch", False, "model.adaptive.input", _ADAPTIVE),
    becomes("--adaptive-input-cutoff", "text", None, "model.adaptive.cutoffs", _ADAPTIVE),
    becomes("--adaptive-input-factor", "float", 4.0, "model.adaptive.factor", _ADAPTIVE),
    becomes("--adaptive-softmax-cutoff", "text", None, "model.adaptive.cutoffs", _ADAPTIVE),
    becomes("--adaptive-softmax-dropout", "float", 0.0, "model.adaptive.softmax_dropout",
            _ADAPTIVE),
    becomes("--adaptive-softmax-factor", "float", 4.0, "model.adaptive.factor", _ADAPTIVE),
    becomes("--tie-adaptive-weights", "switch", False, "model.share_embeddings", _ADAPTIVE),
    becomes("--tie-adaptive-proj", "switch", False, "model.adaptive.tie_projections", _ADAPTIVE),
    refused("--encoder-embed-path", "text", None, _PRETRAINED),
    refused("--decoder-embed-path", "text", None, _PRETRAINED),
    refused("--encoder-layers-to-keep", "text", None, _KEPT),
    refused("--decoder-layers-to-keep", "text", None, _KEPT),
    refused("--encoder-xformers-att-config", "text", None, "attention always has its own kernels"),
    refused("--decoder-xformers-att-config", "text", None, "attention always has its own kernels"),
    refused("--merge-src-tgt-embed", "switch", False, "use --share-all-embeddings"),
    becomes("--decoder-output-dim", "int", None, "model.d_model", _TWO_WIDTHS),
    becomes("--decoder-input-dim", "int", None, "model.d_model", _TWO_WIDTHS),
    refused("--no-cross-attention", "switch", False, "a decoder always reads the source"),
    refused("--cross-self-attention", "switch", False, "self-attention reads the target only"),
    refused("--quant-noise-pq", "float", 0.0, _QUANT),
    idle("--quant-noise-pq-block-size", "int", 8, _QUANT),
    refused("--quant-noise-scalar", "float", 0.0, _QUANT),
    idle("--min-params-to-wrap", "int", 100_000_000, "ZeRO stage 3 divides all parameters"),
    refused("--char-inputs", "switch", False, "models read subwords; leave it out"),
    refused("--base-layers", "int", 0, "BASE layers are not supported; see model.moe"),
    idle("--base-sublayers", "int", 1, "there are no BASE layers"),
    idle("--base-shuffle", "int", 1, "there are no BASE layers"),
    idle("--export", "switch", False, "it changes no result"),
    becomes("--no-decoder-final-norm", "switch", False, "model.norm_position"),
    idle("--alignment-heads", "int", 1, _ALIGNED),
    idle("--alignment-layer", "int", 4, _ALIGNED),
    idle("--full-context-alignment", "switch", False, _ALIGNED),
    refused("--pipeline-model-parallel", "switch", False, _PIPELINE),
    idle("--pipeline-balance", "text", None, _PIPELINE),
    idle("--pipeline-devices", "text", None, _PIPELINE),
    idle("--pipeline-chunks", "int", 0, _PIPELINE),
    idle("--pipeline-encoder-balance", "text", None, _PIPELINE),
    idle("--pipeline-encoder-devices", "text", None, _PIPELINE),
    idle("--pipeline-decoder-balance", "text", None, _PIPELINE),
    idle("--pipeline-decoder-devices", "text", None, _PIPELINE),
    idle("--pipeline-checkpoint", "text", "never", _PIPELINE),
)  # fmt: skip
"""The flags of the model."""
