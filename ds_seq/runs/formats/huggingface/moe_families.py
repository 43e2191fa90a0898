"""Where the tensors of NLLB-MoE and Switch Transformers are."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from ds_seq.config.huggingface.experts import (
    NLLB_MOE,
    SWITCH,
    nllb_layers,
    num_experts,
    switch_layers,
)
from ds_seq.config.huggingface.facts import Facts
from ds_seq.runs.formats.huggingface.families import Named, Section, Settings, bart_like, t5
from ds_seq.runs.formats.huggingface.mapping import Names, Part, experts

# how NLLB-MoE calls the parts of a layer of M2M100
_NLLB_PARTS = {
    ".encoder_attn": ".cross_attention",
    ".final_layer_norm": ".ff_layer_norm",
    ".fc1": ".ffn.fc1",
    ".fc2": ".ffn.fc2",
}


def _nllb_moe(config: Settings, section: Section, facts: Facts, stored: Container[str]) -> Named:
    base = bart_like({**config, "model_type": "m2m_100"}, section, facts, stored)
    renamed = _renamed(base.names, _NLLB_PARTS)
    return base._replace(names=_with_experts(renamed, nllb_layers(config), config, True))


def _switch(config: Settings, section: Section, facts: Facts, stored: Container[str]) -> Named:
    base = t5({**config, "model_type": "t5", "feed_forward_proj": "relu"}, section, facts, stored)
    renamed = _renamed(base.names, {".DenseReluDense": ".mlp"})
    return base._replace(names=_with_experts(renamed, switch_layers(config), config, False))


def _renamed(names: Names, table: Mapping[str, str]) -> Names:
    """Return `names` with other names of the parts of their layers."""
    found = {}
    for ours, parts in names.items():
        for old, new in table.items() if ".layers." in ours else ():
            parts = [part._replace(name=part.name.replace(old, new)) for part in parts]
        found[ours] = parts
    return found


def _with_experts(
    names: Names, layers: Mapping[str, Sequence[int]], config: Settings, is_nllb: bool
) -> Names:
    """Return `names` with experts and a router in place of the feed-forwards of some layers."""
    count = num_experts(config)
    # its experts' outputs are scaled in evaluation by the share that is not masked in training
    times = 1.0 - config.get("moe_token_dropout", 0.2) if is_nllb else 1.0
    maps = ("fc1", "fc2") if is_nllb else ("wi", "wo")
    for stack, chosen in layers.items():
        for layer in chosen:
            place = f"{stack}.layers.{layer}.feed_forward"
            (up,) = names[f"{place}.up.weight"]
            theirs = up.name.removesuffix(f".{maps[0]}.weight")
            for kind in ("weight", "bias"):
                for each in ("up", "down"):
                    names.pop(f"{place}.{each}.{kind}", None)
            names[f"{place}.gate.weight"] = [Part(f"{theirs}.router.classifier.weight")]
            container = f"{theirs}.experts"
            names |= experts(f"{place}.experts", container, count, maps, is_nllb, times)
    return names


MOE_FAMILIES: dict[str, Callable[[Settings, Section, Facts, Container[str]], Named]] = {
    NLLB_MOE: _nllb_moe,
    SWITCH: _switch,
}
"""How to name the tensors of a model with experts, by its `model_type`."""
