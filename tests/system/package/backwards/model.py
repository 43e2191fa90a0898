"""A recurrent decoder that starts from the mean of the source's embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.config.model import ModelConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture


class State:
    """Hidden states (N, D) of N hypotheses, `beam` of each sentence."""

    def __init__(self, hidden: Tensor, beam: int) -> None:
        self.hidden, self._beam = hidden, beam

    def reorder(self, rows: Tensor) -> None:
        self.hidden = self.hidden[rows]

    def keep_sentences(self, kept: Tensor) -> None:
        self.hidden = self.hidden.unflatten(0, (-1, self._beam))[kept].flatten(0, 1)


class MeanToText(nn.Module):
    """Source (B, S) -> mean (B, D) -> GRU over the target."""

    def __init__(self, vocab_size: int, width: int, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.embedding = nn.Embedding(vocab_size, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, vocab_size)

    def forward(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        start = self.encode(inputs.source, inputs.source_mask)
        hidden, _ = self.cell(self.embedding(inputs.target), start[None])
        return ModelOutput(self.output(hidden[inputs.target_mask]), {}, [])

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        real = source_mask[..., None]
        mean: Tensor = (self.embedding(source) * real).sum(1) / real.sum(1)
        return mean

    def start_cache(self, encoded: Tensor, beam: int, max_length: int) -> State:
        return State(encoded.repeat_interleave(beam, 0), beam)

    def decode_step(self, tokens: Tensor, cache: State) -> Tensor:
        hidden, state = self.cell(self.embedding(tokens)[:, None], cache.hidden[None])
        cache.hidden = state[0]
        logits: Tensor = self.output(hidden[:, 0])
        return logits


def build(
    config: ModelConfig, vocab_size: int, expert_parallel: int, rank: int, seed: int
) -> nn.Module:
    """Build the model of a `model` section."""
    torch.manual_seed(seed)
    return MeanToText(vocab_size, config.d_model, config.max_positions)
