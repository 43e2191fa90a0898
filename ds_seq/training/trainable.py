"""Parts of a model that keep the weights they start with, and the proof that they did."""

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
    """Stop parts of a model from learning; before optimizer and engine are made.

    - ``encoder``: the layers of the encoder, its learned positions and its last norm, but not the
      embedding of source tokens, which the decoder may share. What the encoder says of a sentence
      stays the same if ``embeddings`` are frozen, too.
    - ``embeddings``: of source and target tokens, and learned positions of both sides. A projection
      to the vocabulary that is tied to an embedding is frozen with it; one of its own is not.

    Args:
        model: whose parameters lose their gradient.
        parts: which ones; none is allowed.

    Raises:
        UserError: the model is none of ours, so that nobody knows its parts.
    """
    if not parts:
        return
    if not isinstance(model, Seq2SeqTransformer):
        raise UserError(
            f"train.freeze: cannot tell the parts of an external model ({type(model).__name__}); "
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
    """Those that are not trained, with their names."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter


def describe_frozen(model: nn.Module, parts: Collection[FrozenPart], is_drawn: bool) -> str:
    """What is frozen, in one line.

    Args:
        model: after `freeze`, also under an engine.
        parts: what `freeze` was given.
        is_drawn: whether its weights come from nowhere but chance, which freezing is rarely for.
    """
    count = sum(full_shape(parameter).numel() for _, parameter in frozen_parameters(model))
    line = f"frozen: {', '.join(parts)}; {count:,} parameters on this rank"
    if not is_drawn:
        return line
    return (
        f"{line}. Warning: they stay as they were drawn, at random; name a run in train.init_from"
    )


class FrozenCheck:
    """Proves that what is frozen has kept every bit: parameters, and buffers of frozen modules.

    Making and asking one is a collective: ZeRO 3 gathers each parameter for a moment.

    Args:
        model: after the engine has been made around it, which may round, move and cut weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._fingerprints()

    def verify(self) -> None:
        """See that nothing has changed; if it has, the program is wrong, not its user."""
        for name, value in self._fingerprints().items():
            assert value == self._before[name], f"{name} is frozen, but training has changed it"

    def _fingerprints(self) -> dict[str, bytes]:
        found = {}
        for name, parameter in frozen_parameters(self._model):
            with GatheredParameters([parameter]):
                found[name] = _fingerprint(parameter)
        for name, buffer in persistent_buffers(self._model):
            if _is_frozen(self._model.get_submodule(name.rpartition(".")[0])):
                found[name] = _fingerprint(buffer)
        return found


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _fingerprint(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(values.view(torch.uint8).numpy().data, digest_size=16).digest()
