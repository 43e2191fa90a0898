"""The learned prior of a mixture: how probable each expert is, given the source.

The gating network of fairseq's `translation_moe` (Shen et al., 2019, arXiv:1902.07816), over the
mean h of the encoder's output: softmax(W2 dropout(tanh(W1 h))), with biases.

Shapes: B batch, S source length, D model width, K experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.models.init import initialize
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.linear import Linear
from ds_seq.modules.residual import dropout


class ExpertPriorNetwork(nn.Module):
    """Log-probabilities of experts.

    Args:
        d_model: D.
        num_experts: K.
        drop: probability of dropping a hidden unit in training.
    """

    def __init__(self, d_model: int, num_experts: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.inner = Linear(d_model, d_model)
        self.outer = Linear(d_model, num_experts)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return (B, K) float32.

        Args:
            hidden: output of the encoder (B, S, D).
            mask: (B, S) bool, True at real tokens, of which each sentence has one at least.
        """
        real = mask.unsqueeze(2)
        # not by a product, in which what is not finite at padding would stay
        total = hidden.masked_fill(~real, 0.0).sum(1, dtype=torch.float32)
        mean = (total / real.sum(1)).to(hidden.dtype)
        units = dropout(torch.tanh(self.inner(mean)), self.drop, self.training)
        scores: Tensor = self.outer(units)
        return scores.float().log_softmax(1)


def attach_prior(
    model: Seq2SeqTransformer, d_model: int, num_experts: int, drop: float, seed: int
) -> int:
    """Let a model learn the prior of its experts; returns the number of new parameters.

    It becomes a part of the model in training, as `ds_seq.distill.projection` does.

    Args:
        model: the model, before DeepSpeed wraps it.
        d_model: D.
        num_experts: K.
        drop: see `ExpertPriorNetwork`.
        seed: seed of its parameters.
    """
    prior = ExpertPriorNetwork(d_model, num_experts, drop)
    initialize(prior, seed)
    model.expert_prior = prior
    return sum(parameter.numel() for parameter in prior.parameters())
