"""Embeddings of tokens from the bytes of their pieces, as fairseq's `CharacterTokenEmbedder`.

A network of convolutions over bytes (Kim et al., 2016, https://arxiv.org/abs/1508.06615; Jozefowicz
et al., 2016, https://arxiv.org/abs/1602.02410) with highway layers (Srivastava et al., 2015). Each
token of a batch is computed once, however often it occurs.

Shapes: B batch, T tokens, U different tokens, L bytes that are read, C channels, D model width, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import Linear, linear

_NO_BYTE = 0  # byte n has row n + 1
_ROWS = 257


class ByteConvolution(nn.Module):
    """A convolution over bytes, of which the largest value counts, and a ReLU.

    Args:
        width: width of the embeddings of bytes.
        channels: its channels.
        size: number of bytes under the kernel.
    """

    def __init__(self, width: int, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width, size))
        self.bias = nn.Parameter(torch.empty(channels))

    def draw_parameters(self) -> None:
        """Draw a uniform distribution as PyTorch does for convolutions."""
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return (U, channels) of embedded bytes (U, width, L)."""
        return F.relu(F.conv1d(x, self.weight, self.bias).amax(-1))


class Highway(nn.Module):
    """A layer that passes on a share of its input: `g x + (1 - g) relu(W x)`.

    Args:
        width: width of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * width, width))
        self.bias = nn.Parameter(torch.empty(2 * width))

    def draw_parameters(self) -> None:
        """Draw as fairseq does; the gates begin by passing on most of their input."""
        nn.init.xavier_normal_(self.weight)
        with torch.no_grad():
            self.bias.zero_()
            self.bias[len(self.bias) // 2 :] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return (U, C) of x (U, C)."""
        values, gates = linear(x, self.weight, self.bias).chunk(2, -1)
        gates = gates.sigmoid()
        return gates * x + (1.0 - gates) * F.relu(values)


class CharacterEmbedding(nn.Module):
    """Embeds tokens by the bytes of their pieces.

    The padding token is zero; the end of a text and the unknown token have vectors of their own,
    as their pieces are no text.

    Args:
        filters: bytes under the kernel and channels of each convolution.
        width: width of the embeddings of bytes.
        highway_layers: number of highway layers.
        max_bytes: L.
        vocab_size: V.
        d_model: D.
        scaled: whether embeddings are multiplied by sqrt(D).
    """

    bytes: Tensor
    pad_id: int
    eos_id: int
    unk_id: int

    def __init__(
        self,
        filters: Sequence[Sequence[int]],
        width: int,
        highway_layers: int,
        max_bytes: int,
        vocab_size: int,
        d_model: int,
        scaled: bool,
    ) -> None:
        super().__init__()
        channels = sum(count for _, count in filters)
        self.scale = math.sqrt(d_model) if scaled else 1.0
        self.weight = nn.Parameter(torch.empty(_ROWS, width))
        self.symbols = nn.Parameter(torch.empty(2, d_model))
        self.convolutions = nn.ModuleList(
            ByteConvolution(width, count, size) for size, count in filters
        )
        self.highway = nn.ModuleList(Highway(channels) for _ in range(highway_layers))
        self.projection = Linear(channels, d_model)
        # a part of the vocabulary, which every run has anyway
        table = torch.zeros(vocab_size, max_bytes, dtype=torch.int16)
        self.register_buffer("bytes", table, persistent=False)
        self._is_known = False

    def draw_parameters(self) -> None:
        """Draw Xavier's normal distribution; no byte is zero."""
        nn.init.xavier_normal_(self.weight)
        nn.init.xavier_normal_(self.symbols)
        with torch.no_grad():
            self.weight[_NO_BYTE].zero_()

    def read_pieces(
        self, pieces: Iterable[str], pad: int, eos: int, unk: int, bos: int | None
    ) -> None:
        """Take the bytes of the pieces of a vocabulary, in the order of their ids.

        Args:
            pieces: V pieces.
            pad: padding token.
            eos: end of a text.
            unk: unknown token.
            bos: start of a text, which has no bytes either; None if there is none.
        """
        most = self.bytes.size(1)
        rows = []
        for number, piece in enumerate(pieces):
            own = b"" if number in (pad, eos, unk, bos) else piece.encode("utf-8")[:most]
            rows.append([byte + 1 for byte in own] + [_NO_BYTE] * (most - len(own)))
        assert len(rows) == len(self.bytes), "a vocabulary of another size"
        self.bytes.copy_(torch.tensor(rows, dtype=torch.int16))
        self.pad_id, self.eos_id, self.unk_id = pad, eos, unk
        self._is_known = True

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, T): (B, T, D)."""
        assert self._is_known, "read_pieces comes first"
        different, places = ids.unique(return_inverse=True)
        embedded = F.embedding(
            self.bytes[different].long(), self.weight, padding_idx=_NO_BYTE
        )  # (U, L, width)
        parts = [convolution(embedded.transpose(1, 2)) for convolution in self.convolutions]
        x = torch.cat(parts, -1)
        for layer in self.highway:
            x = layer(x)
        x = self.projection(x)
        for symbol, token in enumerate((self.eos_id, self.unk_id)):
            x = torch.where((different == token)[:, None], self.symbols[symbol], x)
        x = x.masked_fill((different == self.pad_id)[:, None], 0.0)
        found = x.index_select(0, places.flatten()).view(*ids.shape, -1)
        return found if self.scale == 1.0 else found * self.scale
