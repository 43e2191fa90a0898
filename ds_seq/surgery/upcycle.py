"""Start from the weights of another run; copy a dense feed-forward into every expert of its layer.

Komatsuzaki et al., 2022, "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
https://arxiv.org/abs/2212.05055. If the weights over the experts of a token sum to 1
(`normalize_weights`), the model initially computes exactly the same as the dense one. Otherwise an
expert's output is scaled by the router's probability, and training starts from a worse model.

Shapes: `D` model width, `F` feed-forward width (the fused `2F` with a gate).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import ModelConfig, OtherModel
from ds_seq.errors import UserError
from ds_seq.modules.activations import find_activation
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.experts import Experts, expert_generator
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import STACKS
from ds_seq.runs.foreign import is_huggingface, open_huggingface
from ds_seq.runs.open import open_run
from ds_seq.surgery.one_stack import parts_apart
from ds_seq.weights.fill import Allowed, Differences, fill, model_tensors, read_like
from ds_seq.weights.selection import Selection, listed
from ds_seq.weights.source import TensorSource

# model options that do not affect the shapes of its tensors
_SHAPELESS = (
    "num_heads",
    "pruned_heads",
    "attention_window",
    "encoder_mixer",
    "decoder_mixer",
    "activation",
    "linear",
    "norm_position",
    "norm",
    "positions",
    "embedding_scale",
)


# values whose weights are a start for other values: rounding begins with the weights as they are
_STARTING_POINTS = [("linear", "float")]


class DenseTensors(NamedTuple):
    """The tensors of a feed-forward, `down(activation(up(x)))`."""

    up: Tensor
    """(F, D)."""
    up_bias: Tensor | None
    """(F,), or None."""
    down: Tensor
    """(D, F)."""
    down_bias: Tensor | None
    """(D,); None if `up_bias` is."""
    inner_norm: tuple[Tensor, ...] = ()
    """(F,) each: the parameters of the norm of the hidden units, if there is one."""


def start_from(model: nn.Module, config: ExperimentConfig, fingerprint: str) -> list[str]:
    """Fill a new model with the weights of the run `train.init_from`.

    Every rank reads only what it holds. Routers of upcycled layers keep their initial values.

    Args:
        model: a model built from `config`, on the CPU.
        config: experiment that names the other run and its checkpoint.
        fingerprint: `Tokenizers.fingerprint` of this run's data.

    Returns:
        Lines about what the run does not have, and about what is not used of it.

    Raises:
        UserError: the run does not exist, has another vocabulary, or its model does not fit.
    """
    train = config.train
    assert train.init_from is not None
    path = Path(train.init_from)
    if is_huggingface(path):
        stored = open_huggingface(path, config)
    else:
        stored = open_run(path, train.init_checkpoint)
    stored.require_full_precision()
    theirs = stored.tokenizers.fingerprint
    if theirs != fingerprint:
        raise UserError(
            f"train.init_from: {train.init_from} has vocabulary {theirs[:12]}, the data "
            f"{fingerprint[:12]}; both need the same one"
        )
    _check_kind(train.init_from, stored.model_config, config.model)
    apart = parts_apart(train.init_from, stored.model_config, config.model)
    allowed = Allowed(
        Selection([*train.allow_missing, *apart.missing.entries]),
        Selection([*train.allow_unexpected, *apart.unexpected.entries]),
        ", unless train.allow_missing or train.allow_unexpected names them",
    )
    found = transfer(model, stored.weights, train.upcycle_noise, allowed)
    _check_shapeless(train.init_from, stored.model_config, config.model)
    lines = []
    if found.missing or found.unexpected:
        taken = sum(1 for _ in model_tensors(model)) - len(found.missing)
        lines.append(f"train.init_from: taken from {train.init_from}: {taken} tensors")
    if found.missing:
        lines.append(f"train.init_from: new, not in {train.init_from}: {listed(found.missing)}")
    if found.unexpected:
        lines.append(f"train.init_from: left out of it: {listed(found.unexpected)}")
    return lines


@torch.no_grad()
def transfer(
    model: nn.Module,
    source: TensorSource,
    noise: float,
    allowed: Allowed = Allowed(),  # noqa: B008  (immutable)
) -> Differences:
    """Copy `source` into `model`, upcycling layers that are dense only in the source.

    Args:
        model: a new model.
        source: tensors of the same model, possibly with dense layers instead of experts.
        noise: standard deviation of the noise added to the experts' matrices, relative to that of
            each matrix. The noise depends only on the seed and the global index of an expert.
        allowed: what may differ between the two, apart from upcycled layers.

    Returns:
        What differs.

    Raises:
        UserError: the models do not fit.
    """
    keys = source.keys()
    _refuse_sets(model, source, keys)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MoeFeedForward) and f"{name}.up.weight" in keys
    }
    for name, layer in layers.items():
        if f"{name}.up.lora.down" in keys or f"{name}.down.lora.down" in keys:
            raise UserError(
                f"{source.path}: {name} has a low-rank change, which experts cannot start from; "
                "merge it first: ds-seq export --merge-lora"
            )
        _upcycle(layer, name, source, noise)
    return fill(model, source, list(layers), allowed)


def _refuse_sets(model: nn.Module, source: TensorSource, keys: set[str]) -> None:
    """Refuse layers whose experts would have to start from several feed-forwards."""
    for name, module in model.named_modules():
        if isinstance(module, MoeFeedForward) and f"{name}.sets.0.up.weight" in keys:
            raise UserError(
                f"{source.path}: {name} has several sets of parameters (model.multiway), of which "
                "experts cannot start as one; give experts to other layers (model.moe.placement, "
                "model.moe.layers)"
            )


def _upcycle(layer: MoeFeedForward, name: str, source: TensorSource, noise: float) -> None:
    experts, branch = layer.experts, layer.branch
    dense = _read(source, name, experts)
    if isinstance(branch, SharedBranch):
        if dense.inner_norm:
            raise UserError(
                "train.init_from: shared experts with norm_position subln cannot start as the "
                "dense feed-forward, because their norm also covers the new hidden units; set "
                "model.moe.shared_experts to 0, or upcycle with another norm_position"
            )
        # half each, so that both learn from the start and their sum is the dense output
        half_bias = None if dense.down_bias is None else dense.down_bias / 2
        dense = dense._replace(down=dense.down / 2, down_bias=half_bias)
        _copy_into_shared(_feed_forward(branch.dense), dense)
    elif isinstance(branch, ResidualBranch | ConditionalBranch):
        copy_into(_feed_forward(branch.dense), dense)
    else:
        assert branch is None, f"no upcycling is defined for {type(branch).__name__}"
    up, down = experts.maps
    up.copy_(dense.up)
    down.copy_(dense.down)
    _copy_bias(experts.b1, dense.up_bias)
    _copy_bias(experts.b2, dense.down_bias)
    if experts.inner_norm is not None:
        for stacked, value in zip(experts.inner_norm.parameters(), dense.inner_norm, strict=True):
            stacked.copy_(value)
    if noise:
        _add_noise(experts, noise)


def _copy_bias(target: Tensor | None, bias: Tensor | None) -> None:
    if target is not None and bias is not None:
        target.copy_(bias)


def _read(source: TensorSource, name: str, experts: Experts) -> DenseTensors:
    up, down = experts.maps

    def read(part: str, shape: torch.Size) -> Tensor:
        return read_like(source, f"{name}.{part}", shape, torch.float32).float()

    norm: tuple[Tensor, ...] = ()
    if experts.inner_norm is not None:
        parameters = experts.inner_norm.named_parameters()
        norm = tuple(read(f"inner_norm.{part}", value.shape[2:]) for part, value in parameters)
    return DenseTensors(
        read("up.weight", up.shape[1:]),
        None if experts.b1 is None else read("up.bias", up.shape[1:2]),
        read("down.weight", down.shape[1:]),
        None if experts.b2 is None else read("down.bias", down.shape[1:2]),
        norm,
    )


def _feed_forward(module: nn.Module) -> FeedForward:
    assert isinstance(module, FeedForward)
    return module


def tensors_of(module: nn.Module) -> DenseTensors:
    """Return the tensors of a feed-forward."""
    dense = _feed_forward(module)
    norm = () if dense.inner_norm is None else tuple(dense.inner_norm.parameters())
    return DenseTensors(dense.up.weight, dense.up.bias, dense.down.weight, dense.down.bias, norm)


def copy_into(target: FeedForward, dense: DenseTensors) -> None:
    """Copy the tensors into a feed-forward of the same size."""
    target.up.weight.copy_(dense.up)
    target.down.weight.copy_(dense.down)
    _copy_bias(target.up.bias, dense.up_bias)
    _copy_bias(target.down.bias, dense.down_bias)
    if target.inner_norm is not None:
        for parameter, value in zip(target.inner_norm.parameters(), dense.inner_norm, strict=True):
            parameter.copy_(value)


def _copy_into_shared(target: FeedForward, dense: DenseTensors) -> None:
    """Fill the first F hidden units.

    The others keep their random input weights, with output weights of zero: copies would receive
    the same gradients forever.
    """
    parts = find_activation(target.activation).num_parts
    for target_tensor, dense_tensor in (
        (target.up.weight, dense.up),
        (target.up.bias, dense.up_bias),
    ):
        if dense_tensor is None:
            continue
        halves = zip(target_tensor.chunk(parts), dense_tensor.chunk(parts), strict=True)
        for wide, narrow in halves:
            wide[: len(narrow)].copy_(narrow)
    target.down.weight.zero_()
    target.down.weight[:, : dense.down.shape[1]].copy_(dense.down)
    _copy_bias(target.down.bias, dense.down_bias)


def _add_noise(experts: Experts, noise: float) -> None:
    for local in range(experts.num_local):
        # reuse the expert's random stream: the initial values drawn from it were overwritten
        generator = expert_generator(experts.seed, experts.first_expert + local)
        for matrix in (weight[local] for weight in experts.maps):
            drawn = torch.randn(matrix.shape, generator=generator)
            matrix.add_(drawn, alpha=noise * float(matrix.std()))


def _check_kind(run: str, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Refuse the weights of a model that is made of other parts."""
    is_other = isinstance(theirs, OtherModel) or isinstance(ours, OtherModel)
    if is_other and theirs.name != ours.name:
        raise UserError(
            f"train.init_from: {run} is a model of name {theirs.name}, the experiment has "
            f"model.name {ours.name}; none of its tensors has a place there"
        )


def _check_shapeless(run: str, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Refuse weights whose shapes fit but whose meaning differs."""
    if theirs.name != ours.name and len(theirs.stacks) == len(ours.stacks):
        return  # one of them is external
    old, new = _meaning(theirs), _meaning(ours)
    for key in ours.shapeless if isinstance(ours, OtherModel) else _SHAPELESS:
        if key not in old or key not in new:  # of a stack that only one of them has
            continue
        is_start = (key, old[key]) in _STARTING_POINTS or _begins_dilated(key, theirs, ours)
        if old[key] != new[key] and not is_start:
            raise UserError(
                f"train.init_from: {run} has model.{key} {old[key]}, the experiment {new[key]}; "
                "use the former, with which its weights were trained"
            )


def _begins_dilated(key: str, theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Return whether a stack begins dilated attention with the maps of attention of any kind."""
    if isinstance(theirs, OtherModel) or isinstance(ours, OtherModel):
        return False  # they have no mixers
    return any(
        key == f"{stack}_mixer" and ours.dilated_of(stack) and theirs.has_self_attention(stack)
        for stack in STACKS
    )


def _meaning(model: ModelConfig) -> dict[str, Any]:
    """Return the settings of a model without how retention is computed, which is all the same."""
    settings = model.model_dump()
    for stack in STACKS:
        mixer = settings.get(f"{stack}_mixer")
        if isinstance(mixer, dict):  # of one without options, the dump is its name
            mixer.pop("chunk_size", None)
    return settings
