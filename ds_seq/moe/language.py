"""Routing by language: all tokens of a sentence share the experts of its tag.

Shapes: B sentences, T length, M = B * T rows, padding included, N real tokens,
D model, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.moe.choice import RoutingChoice, SoftmaxChoice
from ds_seq.moe.router import Router, Routing, draw_directions, project


class LanguageRouter(Router):
    """Choose K experts by the language tag at the start of the source (task-level routing,
    arXiv:2110.03742).

    Encoder and decoder route by the same tag, so a whole sentence needs only K experts of each
    layer, and experts of other languages need not be loaded.

    Losses and statistics count tokens, not sentences.

    Args:
        d_model: width of the model, D.
        num_experts: number of experts, E.
        top_k: number of experts per sentence, K.
        load_balance: scope of the load-balancing loss, see `Router`.
    """

    expert_tensors = ("weight",)

    def __init__(self, d_model: int, num_experts: int, top_k: int, load_balance: str) -> None:
        super().__init__(num_experts, top_k, load_balance)
        self.choice = SoftmaxChoice(top_k, "none", "always", second_by_share=False)
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """See `Router`."""
        draw_directions(self.weight)

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """See `Router`.

        Raises:
            RuntimeError: `tag` is missing.
        """
        if tag is None:
            raise RuntimeError(
                "routing by language needs the embedding of each sentence's language tag (tag)"
            )
        by_sentence = self.choice(project(tag.float(), self.weight), self.training)
        length = x.shape[0] // tag.shape[0]
        rows = torch.arange(x.shape[0], device=x.device) if real is None else real
        sentence = rows // length  # (N,)
        assert by_sentence.valid is None
        choice = RoutingChoice(*(each.index_select(0, sentence) for each in by_sentence[:4]))
        return self.routing(choice, with_losses)
