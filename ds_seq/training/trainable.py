"""Select what is trained of a model, and verify that the rest stayed unchanged."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.models.protocol import OffersAdapters
from ds_seq.names import MODEL_PARTS
from ds_seq.plugins import nearest
from ds_seq.training.state import full_shape
from ds_seq.weights.fill import persistent_buffers
from ds_seq.weights.selection import Selection, adapter_of

_LAYER = re.compile(r"\.\d+\.")
_MOST_SHOWN = 8


def freeze(
    model: nn.Module, parts: Collection[str], trainable: Collection[str] = (), where: str = "train"
) -> None:
    """Freeze parameters of a model; call it before optimizer and engine are built.

    - `encoder`: the layers of the encoder, its learned positions and its last norm, but not the
      embedding of source tokens, which the decoder may share. The encoder's output for a sentence
      stays the same only if `embeddings` are frozen, too.
    - `embeddings`: embeddings of source and target tokens, and learned positions of both sides. An
      output projection that is tied to an embedding is frozen with it; an untied one is not.

    Adapters through which no sentence passes are frozen in any case: they have no gradient.

    Args:
        model: the model whose parameters no longer need gradients.
        parts: what to freeze, see `ds_seq.weights.selection`; may be empty.
        trainable: what to train at most; empty: everything.
        where: section of the config that has both, for messages.

    Raises:
        UserError: nothing in the model has one of these names, or nothing is left to be trained.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen, trained = Selection(parts), Selection(trainable)
    for field, selection in (("freeze", frozen), ("trainable", trained)):
        check_known(model, selection, f"{where}.{field}")
    used = _used_adapters(model)
    for name, parameter in model.named_parameters():
        adapter = adapter_of(name)
        is_idle = adapter is not None and adapter not in used
        if is_idle or frozen.has(name) or (trainable and not trained.has(name)):
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{where}.trainable: nothing is trained; "
            + ("name less in freeze" if parts else "name other parts")
        )


def check_known(model: nn.Module, selection: Selection, where: str) -> None:
    """Check that each entry of a selection names parameters of the model.

    Args:
        model: the model.
        selection: the selection.
        where: key of the config that has it.

    Raises:
        UserError: an entry names none.
    """
    names = [name for name, _ in model.named_parameters()]
    idle = selection.idle(names)
    if not idle:
        return
    if idle[0] in MODEL_PARTS:
        raise UserError(
            f"{where}: {type(model).__name__} has no part {idle[0]}; name parameters, or take the "
            "entry out"
        )
    modules = [name for name, _ in model.named_modules()]
    raise UserError(
        f"{where}: nothing in the model is named {idle[0]}{nearest(idle[0], [*names, *modules])}"
    )


def _used_adapters(model: nn.Module) -> tuple[str, ...]:
    chosen = model.adapters if isinstance(model, OffersAdapters) else None
    return () if chosen is None else chosen.used


def frozen_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters that are not trained, with their names."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter


def describe_frozen(
    model: nn.Module, parts: Collection[str], trainable: Collection[str], is_drawn: bool
) -> str:
    """Describe in a few lines what is trained and what is frozen.

    Args:
        model: the model after `freeze`, with or without an engine around it.
        parts: the parts that were passed to `freeze`.
        trainable: what `freeze` was to train at most.
        is_drawn: whether the weights are randomly initialized, which is rarely meant to be frozen.
    """
    sizes = {name: full_shape(value).numel() for name, value in model.named_parameters()}
    frozen = sum(sizes[name] for name, _ in frozen_parameters(model))
    what = ", ".join(parts) or f"all but {', '.join(trainable)}"
    lines = [f"frozen: {what}; {frozen:,} parameters on this rank"]
    if is_drawn:
        lines[0] += ". Warning: they keep values drawn at random; name a run in train.init_from"
    groups: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_LAYER.sub(".*.", name.rpartition(".")[0] or name)] += sizes[name]
    total = sum(sizes.values())
    lines.append(f"trained: {total - frozen:,} of {total:,} ({(total - frozen) / total:.2%}):")
    shown = groups.most_common(_MOST_SHOWN)
    lines += [f"  {count:>12,}  {name}" for name, count in shown]
    rest = groups.total() - sum(count for _, count in shown)
    if rest:
        lines.append(f"  {rest:>12,}  in {len(groups) - len(shown)} further modules")
    return "\n".join(lines)


def has_frozen(model: nn.Module) -> bool:
    """Return whether any parameter is not trained."""
    return next(frozen_parameters(model), None) is not None


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
