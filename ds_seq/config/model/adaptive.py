"""Adaptive input and adaptive softmax: bands of rarer tokens have narrower embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import Field

from ds_seq.config.base import Config, Probability
from ds_seq.names import EmbeddingSharing


class BandSize(NamedTuple):
    """The shape of one band's table."""

    start: int
    """First id of the band."""
    size: int
    """Number of tokens."""
    width: int
    """Width of their embeddings."""


class AdaptiveConfig(Config):
    """Bands of the vocabulary, whose ids must be sorted by falling frequency.

    Adaptive input: Baevski and Auli, 2019, arXiv:1809.10853. Adaptive softmax: Grave et al., 2017,
    arXiv:1609.04309.
    """

    cutoffs: Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(min_length=1)] = Field(
        description="First id of each band but the first, such as `[20000, 60000]`."
    )
    factor: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=4, description="How many times narrower each band is than the one before."
    )
    input: bool = Field(
        default=True,
        description="Whether the input has bands, too; else an ordinary table of its own.",
    )
    tie_projections: bool = Field(
        default=False,
        description="With `share_embeddings: all`, whether the bands of the output use the "
        "projections of the input, too.",
    )
    softmax_dropout: Probability = Field(
        default=0.0,
        description="Dropout before the output, and within it between projection and table.",
    )

    def bands(self, d_model: int, vocab_size: int) -> list[BandSize]:
        """Return the bands of a vocabulary that is larger than the last cutoff."""
        bounds = [0, *self.cutoffs, vocab_size]
        widths = [d_model // self.factor**band for band in range(len(bounds) - 1)]
        return [
            BandSize(start, end - start, width)
            for (start, end), width in zip(pairwise(bounds), widths, strict=True)
        ]

    def errors(self, d_model: int, sharing: EmbeddingSharing) -> Iterator[tuple[str, str]]:
        """Yield incompatible settings as (field, message) pairs."""
        if any(low >= high for low, high in pairwise(self.cutoffs)):
            yield "adaptive.cutoffs", f"{self.cutoffs} must ascend"
        bands = len(self.cutoffs) + 1
        if d_model // self.factor ** (bands - 1) == 0:
            message = (
                f"{self.factor}: the last of {bands} bands would have no width after states of "
            )
            yield "adaptive.factor", f"{message}{d_model}; use a smaller factor or fewer cutoffs"
        if self.tie_projections and sharing == "none":
            message = "true, but share_embeddings is none; use false, or share_embeddings all"
            yield "adaptive.tie_projections", message
        if not self.input and sharing != "none":
            message = f"false, but share_embeddings is {sharing}, which needs both; use none there"
            yield "adaptive.input", message

    def input_params(self, d_model: int, vocab_size: int) -> int:
        """Return the number of parameters of the input: tables and projections."""
        if not self.input:
            return vocab_size * d_model
        bands = self.bands(d_model, vocab_size)
        return sum((band.size + d_model) * band.width for band in bands)

    def output_params(self, d_model: int, vocab_size: int, tied: bool) -> int:
        """Return the number of parameters of the output that it does not share with the input."""
        first, *tails = self.bands(d_model, vocab_size)
        total = len(tails) * d_model  # scores of the bands
        if not tied:
            total += first.size * d_model + sum(band.size * band.width for band in tails)
        if not (tied and self.tie_projections):
            total += sum(band.width * d_model for band in tails)
        return total

    def matrices(self, d_model: int, vocab_size: int, tied: bool) -> list[int]:
        """Return the sizes of all matrices of input and output."""
        bands = self.bands(d_model, vocab_size)
        tables = [band.size * band.width for band in bands]
        maps = [d_model * band.width for band in bands]
        sizes = [*tables, *maps] if self.input else [vocab_size * d_model]
        sizes.append((len(bands) - 1) * d_model)
        if not tied:
            sizes += tables
        return sizes if tied and self.tie_projections else [*sizes, *maps[1:]]

    def expected_weights(self, d_model: int, vocab_size: int) -> tuple[float, float]:
        """Return the weights that a token meets on average in the input and in the output.

        How many tokens are in a band is estimated by Zipf's law.
        """
        bands = self.bands(d_model, vocab_size)
        shares = self.shares(vocab_size)
        maps = [d_model * band.width for band in bands]
        read = sum(share * each for share, each in zip(shares, maps, strict=True))
        first, *tails = bands
        scored = float((first.size + len(tails)) * d_model)
        for share, band in zip(shares[1:], tails, strict=True):
            scored += share * (band.size + d_model) * band.width
        return (read if self.input else 0.0), scored

    def expected_scores(self, vocab_size: int) -> float:
        """Return how many scores a token has on average in training, by the same estimate."""
        first, *tails = self.bands(1, vocab_size)
        shares = self.shares(vocab_size)[1:]
        return first.size + len(tails) + sum(s * b.size for s, b in zip(shares, tails, strict=True))

    def shares(self, vocab_size: int) -> list[float]:
        """Return the share of tokens that is in each band by Zipf's law."""
        bounds = [1, *(cutoff + 1 for cutoff in self.cutoffs), vocab_size + 1]
        return [math.log(high / low) / math.log(bounds[-1]) for low, high in pairwise(bounds)]
