"""Mixtures of experts that share all weights, compared with fairseq's: loss and gradients.

    python benchmarks/parity/fairseq_mixture.py --python VENV/bin/python     # with fairseq-fixed

The four methods of its task `translation_moe`, with label smoothing. Soft ones with a uniform prior
differ by a constant, the logarithm of the number of experts, which fairseq leaves out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import (
    VOCAB,
    Names,
    differences,
    joined_parts,
    linear,
    part_of,
    report,
)
from parity.fairseq_axes import CASES, SINUSOIDAL

from ds_seq.config.model import TransformerConfig
from ds_seq.criterions.base import Current
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.hard_em import HardEm
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.models import build_model
from ds_seq.models.expert_prior import attach_prior

SIDE = Path(__file__).with_name("fairseq_mixture_side.py")
METHODS = ("hMoEup", "hMoElp", "sMoEup", "sMoElp")
SIZES = {"d_model": 32, "ffn_dim": 48, "num_heads": 4, "encoder_layers": 3, "decoder_layers": 2}


def check(_: Any, method: str, tensors: dict[str, Tensor]) -> tuple[float, float]:
    """Return the errors of the loss and of all gradients of a method."""
    config = TransformerConfig.model_validate({**SIZES, "dropout": 0.0, "positions": SINUSOIDAL})
    model: Any = build_model(config, VOCAB, 1, 0, seed=1)
    values, weights, gradients = (
        part_of(tensors, method, kind) for kind in ("values", "weights", "gradients")
    )
    starts = values["starts"].tolist()
    names: Names = dict(CASES["post-norm, sinusoidal"][1])
    if method.endswith("lp"):
        attach_prior(model, config.d_model, len(starts), 0.0, seed=1)
        names |= linear("expert_prior.inner", "gating_network.fc1", bias=True)
        names |= linear("expert_prior.outer", "gating_network.fc2", bias=True)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                joined_parts(weights, names[name], invert=False).reshape(parameter.shape)
            )
    mask = values["target_mask"]
    count = int(mask.sum())
    inputs = Seq2SeqInputs(values["source"], values["source_mask"], values["target"], mask, count)
    batch = Batch(torch.arange(len(mask)), inputs, values["labels"], mask, count, len(mask))
    assignment = "soft" if method.startswith("s") else "hard"
    criterion = HardEm(starts, CrossEntropy(0.1, "fairseq"), assignment)
    read = criterion.prepare(batch, Current(model, 0))
    loss = criterion(model(read.inputs), read).total
    (loss * values["factors"]).backward()
    if method == "sMoEup":
        loss = loss - len(mask) * math.log(len(starts))
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    theirs = {name: joined_parts(gradients, parts, invert=True) for name, parts in names.items()}
    return differences(loss, values["output"], ours, theirs)


def main(argv: Sequence[str]) -> int:
    """Compare all methods, and return 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has fairseq")
    options = parser.parse_args(argv)
    return report(dict.fromkeys(METHODS), options.python, SIDE, check=check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
