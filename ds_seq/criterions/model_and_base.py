"""A base criterion plus the losses that the model itself returns, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.names import BASE


class ModelAndBase(Criterion):
    """`w_base * base + num_tokens * sum_name(w_name * router_loss_name)`.

    The base is a sum over tokens, and router losses are means over a batch; times the number of
    tokens they have the same unit, so a weight means the same whatever the batch size.

    Args:
        base: the criterion of the translation itself.
        weights: by name, `base` or a router loss; a missing name weighs 1.0, and `None` or 0
            leaves the term out of the total. Every term is logged unweighted, left out or not.
        router_losses: the names that the model returns.

    Raises:
        UserError: a weight for a name that does not exist.
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
        self.base, self.capture = base, base.capture
        self.weights = {name: float(weights.get(name, 1.0) or 0.0) for name in known}

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`."""
        base = self.base(output, batch)
        # keeps every parameter in the graph even where the base is left out: ranks reduce them all
        total = self.weights[BASE] * base.total
        parts = dict(base.parts)
        for name, loss in output.router_losses.items():
            in_tokens = loss * batch.num_tokens
            parts[name] = in_tokens.detach()
            if self.weights[name] != 0.0:
                total = total + self.weights[name] * in_tokens
        return Loss(total, parts)

    def train(self, mode: bool = True) -> None:
        """See `Criterion.train`."""
        super().train(mode)
        self.base.train(mode)

    def end_update(self, applied: bool) -> None:
        """See `Criterion.end_update`."""
        self.base.end_update(applied)

    def state(self) -> dict[str, Tensor]:
        """That of the base."""
        return self.base.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Criterion.load_state`."""
        self.base.load_state(state)
