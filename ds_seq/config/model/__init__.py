"""The `model` section: what the model is. Where it runs (expert parallelism) stands in `train`.

It is a union by `name`. A Transformer is put together of axes, each in a file of its own with its
fields, its checks and its count of parameters; people write all fields in one flat section.
"""

from ds_seq.config.model.moe import MoeConfig
from ds_seq.config.model.router import ExternalRouterConfig
from ds_seq.config.model.transformer import ModelSize, TransformerConfig
from ds_seq.config.model.union import ExternalModelConfig, ModelConfig

__all__ = [
    "ExternalModelConfig",
    "ExternalRouterConfig",
    "ModelConfig",
    "ModelSize",
    "MoeConfig",
    "TransformerConfig",
]
