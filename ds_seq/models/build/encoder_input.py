"""Build the language model that reads the source."""

from __future__ import annotations

from ds_seq.config.model import EncoderOnlyConfig
from ds_seq.config.model.encoder_input import EncoderInputConfig
from ds_seq.models.build.one_stack import build_decoder_only, build_encoder_only
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.encoder_input import LanguageModelInput, LayerMix
from ds_seq.models.encoder_only import EncoderOnlyTransformer
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.linear import Linear


def make_encoder_input(
    cfg: EncoderInputConfig, d_model: int, vocab_size: int, seed: int, pad_id: int
) -> LanguageModelInput:
    """Make the input of an encoder, whose language model is not loaded yet.

    Args:
        cfg: its section.
        d_model: width of the encoder.
        vocab_size: size of the vocabulary of the source.
        seed: seed of the parameters.
        pad_id: id of the padding token.
    """
    section = cfg.section
    model: DecoderOnlyTransformer | EncoderOnlyTransformer
    if isinstance(section, EncoderOnlyConfig):
        model = build_encoder_only(section, vocab_size, 1, 0, seed, pad_id)
    else:
        model = build_decoder_only(section, vocab_size, 1, 0, seed, pad_id)
    # what only scores tokens would never get a gradient
    model.output = None
    if isinstance(model, EncoderOnlyTransformer):
        model.lm_head = None
    if isinstance(model.target_embedding, TokenEmbedding):
        model.target_embedding.bias = None
    (stack,) = section.stacks
    return LanguageModelInput(
        model,
        LayerMix(section.calls_of(stack) + 1) if cfg.layers == "mix" else None,
        None if section.d_model == d_model else Linear(section.d_model, d_model, bias=False),
        cfg.weights == "frozen",
    )
