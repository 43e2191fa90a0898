"""fairseq_moe.py: checkpoints of fairseq's branch `moe`, as two ranks write them.

    python fairseq_moe_side.py SOURCE OUT [KIND...]

`SOURCE` is a checkout of that branch (facebookresearch/fairseq, ebea0072), which the script changes
so that it can be imported by a Python of today; the interpreter needs the packages of fairseq 0.12.
`OUT` gets a folder per kind of model: the dictionary, `checkpoint_best-shared.pt` and
`checkpoint_best-rank-N.pt` of random models, split by fairseq's own code, and `expected.pt`: pairs
of ids and the logits of the model that its code puts together again on one rank.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD, WORDS = 2, 40
KINDS: dict[str, dict[str, Any]] = {
    "top2": {"moe_freq": 2},
    "top2_before": {"moe_freq": 1, "moe_normalize_gate_prob_before_dropping": True},
    "top1": {"moe_freq": 2, "moe_top1_expert": True},
    "encoder_only": {"encoder_moe_freq": 1, "moe_expert_count": 2},
    "replicated": {"moe_freq": 1, "moe_expert_count": 1, "moe_top1_expert": True},
}  # fmt: skip
_UNUSED = ("boto3", "iopath", "iopath.common", "iopath.common.file_io", "fairscale", "fairscale.nn",
           "fairscale.nn.data_parallel", "fairscale.nn.data_parallel.fsdp_optim_utils")  # fmt: skip


def modernize(source: Path) -> None:
    """Make the branch importable: defaults of dataclasses, old names of numpy, a lost package."""
    for path in (source / "fairseq").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        default = re.compile(r"^(\s+\w+): (\w+) = \2\(\)\s*$", re.MULTILINE)
        new = default.sub(r"\1: \2 = field(default_factory=\2)", text)
        new = re.sub(r"\bnp\.(float|int|bool|object)\b", r"\1", new)
        new = new.replace(
            "v = FairseqConfig.__dataclass_fields__[k].default\n",
            "v = FairseqConfig.__dataclass_fields__[k]; "
            "v = v.default_factory() if callable(v.default_factory) else v.default\n",
        )
        # torch counts no whole numbers there today; these are statistics only
        new = re.sub(r"histc\(\((\w+)\.squeeze\(\)", r"histc((\1.squeeze().float()", new)
        if new != text:
            path.write_text(new, encoding="utf-8")
    name = "label_smoothed_cross_entropy_latency_augmented.py"
    (source / "fairseq" / "criterions" / name).unlink(missing_ok=True)


class NoManager(list[None]):
    """No manager of paths, which is false, so that files are opened as they are."""

    def register_handler(self, handler: Any) -> None:
        """Do nothing."""


def import_branch(source: Path) -> None:
    """Put the branch before other packages, without those that are for cloud storage and FSDP."""
    sys.path.insert(0, str(source))
    for name in _UNUSED:
        sys.modules[name] = types.ModuleType(name)
    paths: Any = sys.modules["iopath.common.file_io"]
    paths.PathManager = NoManager
    handlers: Any = types.ModuleType("fairseq.fb_pathhandlers")
    handlers.S3PathHandler = object
    sys.modules[handlers.__name__] = handlers
    sharding: Any = sys.modules[_UNUSED[-1]]
    sharding.is_singleton_tensor = None


def given(kind: str) -> argparse.Namespace:
    """Return the arguments of a model."""
    from fairseq.models.transformer import base_architecture

    values = {
        "arch": "transformer", "source_lang": "en", "target_lang": "de", "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 24, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "share_all_embeddings": True,
        "encoder_normalize_before": True, "decoder_normalize_before": True, "moe_expert_count": 4,
        "moe_second_expert_policy": "all", "moe_gating_use_fp32": True, "moe_top1_expert": False,
        "moe_normalize_gate_prob_before_dropping": False, "max_source_positions": 64,
        "moe_eval_capacity_token_fraction": 1.0, "max_target_positions": 64, "moe_freq": 0,
    }  # fmt: skip
    arguments = argparse.Namespace(**{**values, **KINDS[kind]})
    base_architecture(arguments)
    return arguments


def build(arguments: argparse.Namespace, folder: Path) -> Any:
    """Build a model with random values."""
    from fairseq.data import Dictionary
    from fairseq.models.transformer import TransformerModel

    words = Dictionary.load(str(folder / "dict.txt"))
    task = types.SimpleNamespace(source_dictionary=words, target_dictionary=words)
    model = TransformerModel.build_model(arguments, task)
    for name, parameter in sorted(model.named_parameters()):
        rank = dist.get_rank() if "expert" in name and arguments.moe_expert_count >= WORLD else 0
        draw = torch.Generator().manual_seed(sum(map(ord, name)) * 7 + rank)
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
            parameter.add_(float(parameter.dim() == 1 and "norm" in name and "weight" in name))
    return model


def save(kind: str, folder: Path) -> None:
    """Write the files of one rank."""
    from fairseq import moe_checkpoint_utils

    arguments, rank = given(kind), dist.get_rank()
    model = build(arguments, folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shared, experts = moe_checkpoint_utils.split_shared_and_expert_states(model, optimizer)
    parts = {f"rank-{rank}": experts} | ({"shared": shared} if rank == 0 else {})
    for suffix, (weights, state) in parts.items():
        content = {
            "cfg": None, "args": arguments, "model": weights, "last_optimizer_state": state,
            "optimizer_history": [{"num_updates": 7}], "extra_state": {},
        }  # fmt: skip
        torch.save(content, folder / f"checkpoint_best-{suffix}.pt")


def expect(kind: str, folder: Path) -> None:
    """Put the files together with fairseq's code, and write what the model computes."""
    from fairseq import moe_checkpoint_utils

    def load(name: str) -> Any:
        return torch.load(folder / f"checkpoint_best-{name}.pt", weights_only=False)

    arguments = given(kind)
    model = build(arguments, folder)
    ranks = range(min(WORLD, arguments.moe_expert_count))
    experts = moe_checkpoint_utils.merge_multi_local_expert_states(
        [load(f"rank-{rank}") for rank in ranks]
    )
    whole = moe_checkpoint_utils.merge_expert_and_shared_state(experts, load("shared"))
    model.load_state_dict(whole["model"], strict=True)
    model = model.double().eval()
    draw, pairs = torch.Generator().manual_seed(3), []
    for length in range(3, 15, 2):
        source = [*torch.randint(4, WORDS + 4, (length,), generator=draw).tolist(), 2]
        target = [2, *torch.randint(4, WORDS + 4, (length + 1,), generator=draw).tolist()]
        ids = [torch.tensor([each]) for each in (source, target)]
        with torch.no_grad():
            logits = model(ids[0], torch.tensor([len(source)]), ids[1])[0][0]
        pairs.append((source, target, logits))
    torch.save(pairs, folder / "expected.pt")


def main(source: str, out: str, *more: str) -> None:
    """Write all checkpoints, in two processes, and what they compute, in one."""
    if not more or not more[-1].isdecimal():
        modernize(Path(source))
        for kind in more or KINDS:
            folder = Path(out) / kind
            folder.mkdir(parents=True)
            lines = "".join(f"word{n} {WORDS - n}\n" for n in range(WORDS))
            (folder / "dict.txt").write_text(lines, encoding="utf-8")
            for world in (WORLD, 1):
                command = [sys.executable, __file__, source, out, kind, str(world)]
                ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(world)]
                if any([rank.wait(300) for rank in ranks]):
                    sys.exit(f"{kind}: a rank failed")
        return
    kind, world, rank = more
    folder = Path(out) / kind
    import_branch(Path(source))
    store = f"file://{folder.resolve()}/store{world}"
    dist.init_process_group("gloo", store, world_size=int(world), rank=int(rank))
    if int(world) == WORLD:
        save(kind, folder)
    else:
        expect(kind, folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
