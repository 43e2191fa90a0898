"""The `model` section: the model itself. Where it runs (expert parallelism) is set in `train`.

It is a union tagged by `name`. A Transformer is composed of axes; the file of each axis defines its
fields, checks and parameter count. In an experiment file, all fields are in one flat section.
"""

from ds_seq.config.model.convolutional import ConvolutionalConfig
from ds_seq.config.model.convolutional_lm import ConvolutionalLmConfig
from ds_seq.config.model.decoder_only import DecoderOnlyConfig
from ds_seq.config.model.encoder_only import EncoderOnlyConfig
from ds_seq.config.model.moe import MoeConfig
from ds_seq.config.model.recurrent import RecurrentConfig
from ds_seq.config.model.recurrent_lm import RecurrentLmConfig
from ds_seq.config.model.router import ExternalRouterConfig
from ds_seq.config.model.section import ModelSize, OtherModel
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.config.model.union import (
    ExternalModelConfig,
    HuggingFaceModelConfig,
    ModelConfig,
)

__all__ = [
    "ConvolutionalConfig",
    "ConvolutionalLmConfig",
    "DecoderOnlyConfig",
    "EncoderOnlyConfig",
    "ExternalModelConfig",
    "ExternalRouterConfig",
    "HuggingFaceModelConfig",
    "ModelConfig",
    "ModelSize",
    "OtherModel",
    "MoeConfig",
    "RecurrentConfig",
    "RecurrentLmConfig",
    "TransformerConfig",
]
