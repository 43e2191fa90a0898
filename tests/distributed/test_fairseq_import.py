"""`ds-seq import fairseq` reads the experts that DeepSpeed itself has written, on two ranks."""

from __future__ import annotations

import re
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from ds_seq import cli
from ds_seq.runs.open import load_run
from tests.distributed.harness import run_distributed
from tests.unit.runs.fairseq_model import INNER, WIDTH, arguments, shared_model, write

GIVEN = arguments(arch="transformer_ds_moe_tiny", deepspeed_moe="enc,dec", num_experts=4,
                  top_k=1, decoder_layers=2, ep_world_size=2)  # fmt: skip
_EXPERT = re.compile(r"(.*\.deepspeed_experts\.)(\d+)(\..*)")


class _Tree(nn.Module):
    """Modules and parameters at the places that their names say, as fairseq's model has them."""

    def place(self, name: str, value: nn.Module | nn.Parameter) -> None:
        """Put a module or a parameter at a place."""
        parent, _, last = name.rpartition(".")
        module: nn.Module = self
        for part in parent.split("."):
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        setattr(module, last, value)


def _model(state: dict[str, Tensor]) -> _Tree:
    """A model with these tensors, whose experts are a rank's own share."""
    tree = _Tree()
    for name, value in state.items():
        if ".deepspeed_moe." not in name and value.is_floating_point():
            tree.place(name, nn.Parameter(value.clone()))
    for stack in ("encoder", "decoder"):
        expert = nn.Sequential(
            nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Dropout(0.0), nn.Linear(INNER, WIDTH)
        )
        layer = MoE(WIDTH, expert, num_experts=4, ep_size=2, k=1)
        tree.place(f"{stack}.layers.1.experts", layer)
    return tree


def _save(folder: Path) -> None:
    state, rank = shared_model(num_experts=4, decoder_layers=2), dist.get_rank()
    model = _model(state)
    options = {"train_batch_size": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=options
    )
    with torch.no_grad():  # each rank has two of the four experts
        for name, parameter in model.named_parameters():
            found = _EXPERT.fullmatch(name)
            number = name if found is None else f"{found[1]}{int(found[2]) + 2 * rank}{found[3]}"
            parameter.copy_(state[number])
    engine.save_checkpoint(str(folder / "deepspeed_moe" / "checkpoint_best.pt"), tag="default")
    if rank == 0:  # as the Transformer's trainer does it, with the experts of this rank
        write(folder, dict(model.state_dict()), GIVEN)


def test_experts_that_deepspeed_saved_are_read(tmp_path: Path) -> None:
    run_distributed(_save, 2, tmp_path)
    assert len(list(tmp_path.rglob("layer_*_expert_*_model_states.pt"))) == 8
    words = ["--dict", str(tmp_path / "dict.txt"), "--out", str(tmp_path / "run")]
    assert cli.main(["import", "fairseq", str(tmp_path / "checkpoint_best.pt"), *words]) == 0
    model = load_run(tmp_path / "run", "best").model
    state = shared_model(num_experts=4, decoder_layers=2)
    for stack in ("encoder", "decoder"):
        experts = f"{stack}.layers.1.experts.deepspeed_moe.experts.deepspeed_experts"
        expected = torch.stack([state[f"{experts}.{e}.3.weight"] for e in range(4)])
        found = model.get_parameter(f"{stack}.layers.1.feed_forward.experts.w2")
        assert torch.equal(found, expected)
