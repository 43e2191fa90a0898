"""Build the residual around a sub-layer, and the norm after the last layer."""

from __future__ import annotations

import torch
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.depth import DepthScale
from ds_seq.models.build.norm import make_norm
from ds_seq.models.init import ScalesParameters
from ds_seq.modules.attention import CrossAttention
from ds_seq.modules.residual import Residual
from ds_seq.names import Stack


def make_residual(cfg: TransformerConfig, stack: Stack, index: int) -> Residual:
    """Make the residual around one sub-layer of layer `index` of a stack."""
    depth = cfg.layers_of(stack)
    drop_path = cfg.drop_path * index / (depth - 1) if depth > 1 else cfg.drop_path
    scale = _depth_scale(cfg, stack).skip
    norm = make_norm(cfg, sets=cfg.sets_of(stack))
    return Residual(norm, cfg.dropout, cfg.normalizes_first, drop_path, scale)


def make_final_norm(cfg: TransformerConfig, stack: Stack) -> nn.Module | None:
    """Make the norm after the last layer of a stack, if it has one."""
    return make_norm(cfg, sets=cfg.sets_of(stack)) if cfg.has_final_norm else None


@torch.no_grad()
def scale_initial(model: nn.Module, cfg: TransformerConfig) -> None:
    """Scale initial weights for deep models: values and outputs of attention, feed-forwards.

    SubLN leaves cross-attention as it is.

    Args:
        model: model with the stacks as children of their names.
        cfg: config of the model.
    """
    for stack in cfg.stacks:
        factor = _depth_scale(cfg, stack).initial
        if factor == 1.0:
            continue
        for module in model.get_submodule(stack).modules():
            is_left_out = cfg.norm_position == "subln" and isinstance(module, CrossAttention)
            if isinstance(module, ScalesParameters) and not is_left_out:
                module.scale_parameters(factor)


def _depth_scale(cfg: TransformerConfig, stack: Stack) -> DepthScale:
    return cfg.depth_scale(stack, cfg.calls_of("encoder"), cfg.calls_of("decoder"))
