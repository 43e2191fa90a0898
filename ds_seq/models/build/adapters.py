"""Build the adapters of a layer, and say which sentences pass through which of them."""

from __future__ import annotations

from typing import cast

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.adapters import AdaptersConfig
from ds_seq.errors import UserError
from ds_seq.models.build.norm import make_norm
from ds_seq.models.protocol import OffersAdapters
from ds_seq.models.stack import SubLayer
from ds_seq.modules.adapter import Adapter, AdapterChoice, AdapterPool, NoResidual
from ds_seq.modules.residual import Residual
from ds_seq.names import NO_ADAPTER
from ds_seq.plugins import nearest
from ds_seq.text.tokenizer import Tokenizer


def make_adapters(cfg: TransformerConfig) -> SubLayer:
    """Make the sub-layer of all adapters of one layer."""
    adapters = cfg.adapters
    assert adapters is not None
    pool = AdapterPool({name: _adapter(cfg, adapters) for name in adapters.ids})
    return SubLayer(cast(Residual, NoResidual()), pool)


def _adapter(cfg: TransformerConfig, adapters: AdaptersConfig) -> Adapter:
    return Adapter(
        cfg.d_model,
        adapters.width(cfg.d_model),
        adapters.activation,
        cfg.dropout,
        make_norm(cfg),
        adapters.norm == "first",
        adapters.gate,
    )


def choose_adapters(
    model: OffersAdapters, adapters: AdaptersConfig, tokenizer: Tokenizer | None = None
) -> None:
    """Let a model choose the adapter of each sentence as its config says.

    Args:
        model: the model.
        adapters: config of its adapters.
        tokenizer: tokenizer of the source; without one, tags are not looked at.

    Raises:
        UserError: the vocabulary does not have a tag.
    """
    of_tag = {} if tokenizer is None else _ids_of_tags(adapters, tokenizer)
    chosen = AdapterChoice(adapters.active, of_tag)
    model.adapters = chosen if chosen.used else None


def choose_one_adapter(model: nn.Module, ids: list[str], adapter: str) -> None:
    """Let all sentences pass through one adapter, whatever their tags; or through none.

    Args:
        model: the model.
        ids: ids of its adapters.
        adapter: id of the adapter, or `NO_ADAPTER`.

    Raises:
        UserError: there is no such adapter.
    """
    if adapter not in (*ids, NO_ADAPTER):
        known = f"its adapters are {', '.join(ids)}" if ids else "it has none"
        raise UserError(f"no adapter {adapter!r} in the model{nearest(adapter, ids)}; {known}")
    if isinstance(model, OffersAdapters):
        model.adapters = None if adapter == NO_ADAPTER else AdapterChoice(adapter)


def _ids_of_tags(adapters: AdaptersConfig, tokenizer: Tokenizer) -> dict[int, str]:
    """Return the id of the adapter by the token id of its tag."""
    tag_ids = sorted(tokenizer.tag_ids)
    tokens = dict(zip(tokenizer.pieces(tag_ids), tag_ids, strict=True))
    for tag in adapters.tags:
        if tag not in tokens:
            known = ", ".join(tokens) or "none"
            raise UserError(
                f"model.adapters.tags: {tag} is not one of data.vocab.user_symbols"
                f"{nearest(tag, tokens)}, of which there are: {known}"
            )
    return {tokens[tag]: name for tag, name in adapters.tags.items()}
