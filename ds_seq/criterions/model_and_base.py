"""A weighted sum of a base criterion and the losses returned by the model."""

from __future__ import annotations

from collections.abc import Mapping

from ds_seq.criterions.base import Criterion, Loss, Wrapper
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.names import BASE


class ModelAndBase(Wrapper):
    """`w_base * base + num_tokens * sum_name(w_name * router_loss_name)`.

    The base is a sum over tokens, while router losses are means over a batch. They are multiplied
    by the number of tokens to have the same unit, so the meaning of a weight does not depend on the
    batch size.

    Args:
        base: criterion of the translation.
        weights: weights by name, `base` or a router loss. The default is 1.0; `None` or 0 leaves
            the term out of the total. Every term is logged unweighted, even if left out.
        router_losses: names of the losses returned by the model.

    Raises:
        UserError: a weight has an unknown name.
    """

    def __init__(
        self, base: Criterion, weights: Mapping[str, float | None], router_losses: tuple[str, ...]
    ) -> None:
        known = (BASE, *router_losses)
        unknown = sorted(set(weights) - set(known))
        if unknown:
            raise UserError(
                f"criterion.loss_weights: unknown loss {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(known)}"
            )
        super().__init__(base)
        self.prepares = base.prepares
        self.weights = {name: float(weights.get(name, 1.0) or 0.0) for name in known}

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`."""
        base = self.base(output, batch)
        # keep every parameter in the graph even without the base, because ranks reduce all of them
        total = self.weights[BASE] * base.total
        parts = dict(base.parts)
        for name, loss in output.router_losses.items():
            in_tokens = loss * batch.counted_tokens
            parts[name] = in_tokens.detach()
            if self.weights[name] != 0.0:
                total = total + self.weights[name] * in_tokens
        return Loss(total, parts, base.total if base.tokens is None else base.tokens)
