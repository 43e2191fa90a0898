"""Flags of `fairseq-train` that only language models have."""

from __future__ import annotations

from ds_seq.compat.fairseq.flag import Flag, becomes, idle, refused

_ONE_WAY = "each token is predicted from those before it; leave it out"
_CUT = "blocks are cut by task.block_tokens alone"

TEXT_FLAGS: tuple[Flag, ...] = (
    becomes("--tokens-per-sample", "int", 1024, "task.block_tokens, model.max_positions"),
    becomes("--sample-break-mode", "text", "none", "task.blocks",
            "`none`, `eos` and `complete_doc`; blocks of whole sentences are refused"),
    refused("--add-bos-token", "switch", False, "texts begin with the end symbol here"),
    refused("--output-dictionary-size", "int", -1, "input and output have one vocabulary"),
    idle("--self-target", "switch", False, "belongs to tasks of its own"),
    refused("--future-target", "switch", False, _ONE_WAY),
    refused("--past-target", "switch", False, _ONE_WAY),
    refused("--shorten-method", "text", "none", _CUT),
    idle("--shorten-data-split-list", "text", "", _CUT),
    idle("--pad-to-fixed-length", "switch", False, "padding changes no result"),
    idle("--pad-to-fixed-bsz", "switch", False, "padding changes no result"),
    refused("--residuals", "switch", False,
            "adds the layer's own state of the token before there, and its input here"),
    refused("--scale-fc", "switch", False, "there is no norm within a feed-forward"),
    refused("--scale-attn", "switch", False, "there is no norm behind attention"),
    refused("--scale-heads", "switch", False, "there are no factors of heads"),
    refused("--scale-resids", "switch", False, "there are no factors of residual connections"),
    becomes("--character-embeddings", "switch", False, "model.character_embeddings"),
    becomes("--character-filters", "text",
            "[(1, 64), (2, 128), (3, 192), (4, 256), (5, 256), (6, 256), (7, 256)]",
            "model.character_embeddings.filters"),
    becomes("--character-embedding-dim", "int", 4, "model.character_embeddings.embedding_dim"),
    becomes("--char-embedder-highway-layers", "int", 2,
            "model.character_embeddings.highway_layers"),
)  # fmt: skip
"""The flags of the task `language_modeling` and of its models."""
