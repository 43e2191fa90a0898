"""Fill the language model that reads the source with the weights of its run."""

from __future__ import annotations

from ds_seq.config.base import shown
from ds_seq.config.model import ModelConfig
from ds_seq.config.model.encoder_input import EncoderInputConfig
from ds_seq.errors import UserError
from ds_seq.models.encoder_input import LanguageModelInput
from ds_seq.runs.open import open_run
from ds_seq.surgery.one_stack import SCORES
from ds_seq.text.tokenizer import Tokenizer
from ds_seq.weights.fill import Allowed, fill
from ds_seq.weights.selection import Selection

_WHERE = "model.encoder_input"
_FREE = frozenset(
    "preset dropout attention_dropout activation_dropout layer_drop drop_path "
    "activation_checkpointing".split()
)
"""Options that fit the weights with other values, too."""
_SCORES = Selection(("output", *SCORES))
"""What only scores tokens, and so is left out."""


def read_language_model(
    model: LanguageModelInput, config: EncoderInputConfig, tokenizer: Tokenizer
) -> str:
    """Fill a new language model with the weights of its run.

    Args:
        model: the new one, on the CPU.
        config: section that names the run.
        tokenizer: tokenizer of the source.

    Returns:
        A line about what was read.

    Raises:
        UserError: the run does not exist, has another vocabulary, or another model.
    """
    stored = open_run(config.path, "best")
    stored.require_full_precision()
    theirs, ours = stored.tokenizers.target, tokenizer.fingerprint
    if theirs.fingerprint != ours:
        raise UserError(
            f"{_WHERE}.path: {config.path} has vocabulary {theirs.fingerprint[:12]}, the source "
            f"{ours[:12]}; copy its vocabulary to data.dir before `ds-seq prepare`"
        )
    _check_same(config, stored.model_config)
    fill(model.model, stored.weights, allowed=Allowed(unexpected=_SCORES))
    model.begin_with(theirs.symbols.start)
    size = sum(parameter.numel() for parameter in model.model.parameters())
    return f"{_WHERE}: {size:,} parameters of {config.path}, {config.weights}"


def _check_same(config: EncoderInputConfig, theirs: ModelConfig) -> None:
    """Refuse a section with which the weights would mean something else."""
    ours = config.section
    for key, value in ours.model_dump().items():
        other = theirs.model_dump().get(key)
        if key not in _FREE and value != other:
            raise UserError(
                f"{_WHERE}.model.{key}: {shown(value)}, but {config.path} was trained with "
                f"{shown(other)}; remove the key"
            )
