"""What the rest of the system may ask of a `model` section, whatever kind of model it describes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ds_seq.config.base import Config
from ds_seq.config.model.adaptive import AdaptiveConfig
from ds_seq.config.model.characters import CharacterConfig
from ds_seq.names import STACKS, AttentionKind, Stack
from ds_seq.plugins import nearest

if TYPE_CHECKING:
    from ds_seq.config.model.encoder_input import EncoderInputConfig


@dataclass(frozen=True)
class ModelSize:
    """How many parameters a model has.

    Attributes:
        total: all parameters.
        active: parameters used per token: K of each layer's E experts count.
        experts: parameters of experts, which expert parallelism divides over ranks.
    """

    total: int
    active: int
    experts: int = 0

    def __add__(self, other: ModelSize) -> ModelSize:
        return ModelSize(
            self.total + other.total, self.active + other.active, self.experts + other.experts
        )

    @classmethod
    def dense(cls, count: int) -> ModelSize:
        """Return the size of a part that every token passes through."""
        return cls(count, count)


class Flops(NamedTuple):
    """Operations of a forward pass, or of forward and backward, by what they grow with.

    `S` source tokens and `T` target tokens of a sentence.
    """

    per_source: float
    """Per source token: encoder, and keys and values of the decoder's attention to it."""
    per_target: float
    """Per target token: decoder and output projection."""
    per_source_pair: float
    """Per pair of source tokens of a sentence, `S * S`."""
    per_target_pair: float
    """Per pair of target tokens of a sentence, `T * T`."""
    per_cross_pair: float
    """Per source and target token of a sentence, `S * T`."""

    def of(self, sums: LengthSums) -> float:
        """Return the operations for sentences with these sums of lengths."""
        return sum(each * count for each, count in zip(self, sums, strict=True))


class LengthSums(NamedTuple):
    """Sums over sentences, in the order of `Flops`."""

    source: float
    target: float
    source_squared: float
    target_squared: float
    product: float


class ModelSection(Config):
    """Base class of the `model` section of every kind of model.

    A kind of model is a class of its own with a field `name`, a member of the union in `union.py`,
    and a builder in `ds_seq.models.MODELS`. It also has the fields `name` and `max_positions` (the
    longest sequence in tokens), and a property `shares_inputs`: whether source and target tokens
    have one embedding table. Sections that are no Transformer derive from `OtherModel`.
    """

    stacks: ClassVar[tuple[Stack, ...]] = STACKS
    """The stacks of the model."""

    @abstractmethod
    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""

    def calls_of(self, stack: Stack) -> int:
        """Return how many calls of layers a token passes through in `stack`."""
        return self.layers_of(stack)

    @property
    def adaptive_bands(self) -> AdaptiveConfig | None:
        """Bands of the vocabulary with embeddings of different widths; None: there are none."""
        return None

    @property
    def language_model(self) -> EncoderInputConfig | None:
        """A language model whose states are the input of the encoder; None: there is none."""
        return None

    @property
    def characters(self) -> CharacterConfig | None:
        """How tokens are embedded by the bytes of their pieces; None: by a table."""
        return None

    @property
    @abstractmethod
    def state_width(self) -> int | None:
        """Width D of the states `ds_seq.models.output.LayerOutputs` of the layers; None: the model
        returns none."""

    @property
    @abstractmethod
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention of which each layer returns a map when it is captured."""

    @abstractmethod
    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize | None:
        """Count the parameters without building the model.

        Args:
            vocab_size: size of the vocabulary of the target.
            source_vocab_size: size of that of the source; None: the same.

        Returns:
            The number, or None if only the built model knows it.
        """


class OtherModel(ModelSection):
    """Base class of the sections of models that are no Transformer.

    What only a Transformer has is absent from them, and so is said here once: experts, adapters,
    low-rank changes, sets of parameters by language, mixers, recomputation.
    """

    moe: ClassVar[None] = None
    adapters: ClassVar[None] = None
    lora: ClassVar[None] = None
    multiway: ClassVar[None] = None
    shapeless: ClassVar[tuple[str, ...]] = ()
    """Fields that change what the weights mean but not the shapes of tensors: `train.init_from`
    requires them to be the same."""
    experts_per_layer: ClassVar[tuple[int, ...]] = ()
    num_moe_layers: ClassVar[int] = 0
    activation_checkpointing: ClassVar[bool] = False

    def moe_layers(self, stack: Stack) -> list[int]:
        """Return the layers with experts: none."""
        return []

    def experts_in(self, stack: Stack, layer: int) -> int:
        """Return the number of experts of a layer: 0."""
        return 0

    def forward_flops(self, vocab_size: int) -> Flops | None:
        """Return the operations of a forward pass, counted as in `ds_seq.config.flops`.

        Args:
            vocab_size: size of the vocabulary of the target.

        Returns:
            The operations, or None if they are unknown.
        """
        return None


def with_preset(section: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a section with the values of its preset for fields that are not given."""
    preset = section.get("preset") if isinstance(section, Mapping) else None
    if not isinstance(preset, str) or preset not in presets:
        return section  # an unknown preset is reported by the field's own check
    return {**presets[preset], **section}


def known_preset(preset: str | None, presets: Iterable[str], whose: str) -> str | None:
    """Return a preset that there is.

    Args:
        preset: its name, or None.
        presets: names of all.
        whose: what they are of, such as `of a recurrent model`.

    Raises:
        ValueError: there is none of this name.
    """
    names = list(presets)
    if preset is None or preset in names:
        return preset
    known = ", ".join(names)
    raise ValueError(f"no preset {preset!r}{nearest(preset, names)} {whose}; there are {known}")
