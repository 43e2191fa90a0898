"""A trained language model whose states are the encoder's input, in place of token embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from ds_seq.config.base import Config

if TYPE_CHECKING:
    from ds_seq.config.model.decoder_only import DecoderOnlyConfig
    from ds_seq.config.model.encoder_only import EncoderOnlyConfig


class EncoderInputConfig(Config):
    """A language model that reads the source first (Edunov et al., 2019, arXiv:1903.09722)."""

    path: str = Field(
        description="Run folder or exported folder of a model decoder_only or encoder_only with "
        "the vocabulary of the source: its first weights. Needed to train, and not afterwards."
    )
    layers: Literal["last", "mix"] = Field(
        default="last",
        description="What the encoder reads: the output of the language model (`last`), or a "
        "learned average of its normalized embeddings and layers, as in ELMo (`mix`).",
    )
    weights: Literal["frozen", "trained"] = Field(
        default="frozen",
        description="Whether the language model is left as it is, without dropout, or trained.",
    )
    model: dict[str, Any] = Field(
        default={},
        description="Section `model` of the language model, which is read from its run; only "
        "dropout and `activation_checkpointing` can be given here.",
    )

    @property
    def section(self) -> DecoderOnlyConfig | EncoderOnlyConfig:
        """Section of the language model.

        Raises:
            ValidationError: it is not valid, see `errors`.
        """
        # which derive from the section that has this one
        from ds_seq.config.model.decoder_only import DecoderOnlyConfig
        from ds_seq.config.model.encoder_only import EncoderOnlyConfig

        kind = EncoderOnlyConfig if self.model.get("name") == "encoder_only" else DecoderOnlyConfig
        return kind.model_validate(self.model)

    @property
    def num_starts(self) -> int:
        """Number of tokens that the language model reads before those of the source.

        A decoder_only model has learned to begin with the start symbol.
        """
        return 1 if self.model.get("name") == "decoder_only" else 0

    def errors(self, max_positions: int) -> list[tuple[str, str]]:
        """Return what does not fit as (field, message) pairs.

        Args:
            max_positions: longest sequence of the model that has the encoder.
        """
        name = self.model.get("name", "transformer")
        if name not in ("decoder_only", "encoder_only"):
            message = f"{self.path} is a model {name}; name a run of a model decoder_only or "
            return [("encoder_input.path", f"{message}encoder_only")]
        try:
            section = self.section
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return [("encoder_input.model", f"{where}: {first['msg']}")]
        parts = (("moe", section.moe), ("adapters", section.adapters), ("lora", section.lora))
        used = [key for key, part in parts if part is not None]
        if used:
            message = f"{self.path} has model.{used[0]}, which is not supported here; name a "
            return [("encoder_input.path", f"{message}language model without it")]
        longest = section.max_positions - self.num_starts
        if max_positions > longest:
            message = f"{max_positions} is more than the {longest} source tokens that the language "
            return [("max_positions", f"{message}model of encoder_input can read; set it to that")]
        return []

    def num_params(self, d_model: int, vocab_size: int) -> tuple[int, int]:
        """Return the number of parameters of the language model, and of those that are new.

        Args:
            d_model: width of the encoder.
            vocab_size: size of the vocabulary of the source.
        """
        section = self.section
        size = section.num_params(vocab_size).total - self._unused(section, vocab_size)
        new = 0 if section.d_model == d_model else section.d_model * d_model
        (stack,) = section.stacks
        return size, new + (section.calls_of(stack) + 2 if self.layers == "mix" else 0)

    @staticmethod
    def _unused(section: DecoderOnlyConfig | EncoderOnlyConfig, vocab_size: int) -> int:
        """Return the parameters that only score tokens, which are left out."""
        if section.adaptive_bands is not None:
            shared = section.shares_output
            return section.adaptive_bands.output_params(section.d_model, vocab_size, shared)
        biases = vocab_size if section.output_bias else 0
        head = biases + section.head_params()
        return head + (0 if section.shares_output else vocab_size * section.d_model)
