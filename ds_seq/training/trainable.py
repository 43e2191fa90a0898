"""Freeze parts of a model, and verify that they stayed unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.positions import LearnedPositions
from ds_seq.names import FrozenPart
from ds_seq.training.state import full_shape
from ds_seq.weights.fill import persistent_buffers


def freeze(model: nn.Module, parts: Collection[FrozenPart]) -> None:
    """Freeze parts of a model; call it before optimizer and engine are built.

    - `encoder`: the layers of the encoder, its learned positions and its last norm, but not the
      embedding of source tokens, which the decoder may share. The encoder's output for a sentence
      stays the same only if `embeddings` are frozen, too.
    - `embeddings`: embeddings of source and target tokens, and learned positions of both sides. An
      output projection that is tied to an embedding is frozen with it; an untied one is not.

    Args:
        model: the model whose parameters no longer need gradients.
        parts: parts to freeze; may be empty.

    Raises:
        UserError: the model is external, so that its parts are unknown.
    """
    if not parts:
        return
    if not isinstance(model, Seq2SeqTransformer):
        raise UserError(
            f"train.freeze: the parts of an external model are unknown ({type(model).__name__}); "
            "let its builder set requires_grad"
        )
    for module in _modules(model, parts):
        module.requires_grad_(False)


def _modules(model: Seq2SeqTransformer, parts: Collection[FrozenPart]) -> Iterator[nn.Module]:
    if "encoder" in parts:
        yield model.encoder
    if "embeddings" in parts:
        tables = (model.source_embedding, model.target_embedding)
        yield from (table for table in tables if table is not None)
        positions = (model.encoder.positions, model.decoder.positions)
        yield from (rows for rows in positions if isinstance(rows, LearnedPositions))


def frozen_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters that are not trained, with their names."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter


def describe_frozen(model: nn.Module, parts: Collection[FrozenPart], is_drawn: bool) -> str:
    """Describe in one line what is frozen.

    Args:
        model: the model after `freeze`, with or without an engine around it.
        parts: the parts that were passed to `freeze`.
        is_drawn: whether the weights are randomly initialized, which is rarely meant to be frozen.
    """
    count = sum(full_shape(parameter).numel() for _, parameter in frozen_parameters(model))
    line = f"frozen: {', '.join(parts)}; {count:,} parameters on this rank"
    if not is_drawn:
        return line
    return f"{line}. Warning: they keep values drawn at random; name a run in train.init_from"


class FrozenCheck:
    """Verifies that frozen parameters, and buffers of frozen modules, are unchanged bit for bit.

    The constructor and `verify` are collectives: ZeRO 3 gathers each parameter temporarily.

    Args:
        model: the model inside an engine, which may have rounded, moved and partitioned weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._fingerprints()

    def verify(self) -> None:
        """Assert that nothing has changed; a change is a bug, not a user's mistake."""
        for name, value in self._fingerprints().items():
            assert value == self._before[name], f"{name} is frozen, but training has changed it"

    def _fingerprints(self) -> dict[str, bytes]:
        fingerprints = {}
        for name, parameter in frozen_parameters(self._model):
            with GatheredParameters([parameter]):
                fingerprints[name] = _fingerprint(parameter)
        for name, buffer in persistent_buffers(self._model):
            if _is_frozen(self._model.get_submodule(name.rpartition(".")[0])):
                fingerprints[name] = _fingerprint(buffer)
        return fingerprints


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _fingerprint(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(values.view(torch.uint8).numpy().data, digest_size=16).digest()
