"""The encoder-only Transformer: a masked language model, dense or sparse.

Its names of tensors are those of `Seq2SeqTransformer`, which can start from its weights.

Shapes: B batch, T length, N scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ds_seq.data.text_batch import TextInputs
from ds_seq.models.output import LayerOutputs, ModelOutput, StackResult
from ds_seq.models.seq2seq import lengths_of_mask, padding_mask
from ds_seq.models.stack import Stack, layer_maps, real_rows, sum_losses
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding, token_scores
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.adapter import AdapterChoice
    from ds_seq.modules.dense_head import DenseHead


class EncoderOnlyTransformer(nn.Module):
    """A stack whose tokens see each other, and the embedding and projection around it.

    Args:
        encoder: stack that transforms embedded tokens.
        target_embedding: embedding of tokens.
        output: projection to the vocabulary (D -> V); None to use the embedding (tied).
        max_positions: longest text that the model is meant for, in tokens.
        lm_head: what transforms the states (..., D) of scored tokens before the projection; None:
            nothing does.

    Attributes:
        adapters: how the adapter of each text is chosen; None for a model without adapters.
    """

    def __init__(
        self,
        encoder: Stack,
        target_embedding: TokenEmbedding,
        output: nn.Linear | None,
        max_positions: int,
        lm_head: DenseHead | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.target_embedding = target_embedding
        self.lm_head = lm_head
        self.output = output
        self.max_positions = max_positions
        self._routes = bool(encoder.moe_calls())
        self.adapters: AdapterChoice | None = None

    def forward(self, inputs: TextInputs, capture: Capture = "none") -> ModelOutput:
        """Score the hidden tokens of a text given all others.

        Args:
            inputs: the text; the rows of `target_mask` are scored.
            capture: which outputs of the layers to return.

        Returns:
            Logits (N, V) of the scored rows in row-major order, losses and statistics of sparse
            layers, and the captured outputs of the layers.
        """
        result = self.encoded(inputs.tokens, inputs.token_mask, capture, inputs.num_tokens)
        scored = real_rows(inputs.target_mask, inputs.num_targets)
        layers = None
        if capture != "none":
            layers = LayerOutputs(result.states, (), layer_maps(result, "self_attention"))
        hidden = result.hidden.flatten(0, 1).index_select(0, scored)
        if self.lm_head is not None:
            hidden = self.lm_head(hidden)
        return ModelOutput(
            token_scores(hidden, self.target_embedding, self.output),
            sum_losses(layer.losses for layer in result.aux),
            [layer.stats for layer in result.aux],
            layers,
        )

    def encoded(
        self,
        tokens: Tensor,
        mask: Tensor,
        capture: Capture = "none",
        num_tokens: int | None = None,
    ) -> StackResult:
        """Return what the stack makes of a text.

        Args:
            tokens: (B, T).
            mask: (B, T) bool, True at real tokens.
            capture: which outputs of the layers to return.
            num_tokens: number of real tokens, so that a GPU need not count them; None if unknown.
        """
        embedded = self.target_embedding(tokens)
        context = Context(
            mask,
            tokens=tokens,
            attention_mask=padding_mask(mask, embedded),
            token_rows=real_rows(mask, num_tokens) if self._routes else None,
            adapters=None if self.adapters is None else self.adapters.rows(tokens),
            lengths=lengths_of_mask(mask, embedded, num_tokens),
        )
        result: StackResult = self.encoder(embedded, context, capture)
        return result

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return the sparse feed-forwards in the order of `ModelOutput.moe_stats`, one per call."""
        return self.encoder.moe_calls()
