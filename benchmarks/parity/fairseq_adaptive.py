"""Adaptive input and adaptive softmax, compared with fairseq's: outputs and gradients.

    python benchmarks/parity/fairseq_adaptive.py --python VENV/bin/python     # with fairseq-fixed

The modules have the same weights. Compared are embeddings, log-probabilities of all tokens and of
labels alone, and the gradients of embeddings and labels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import differences, parser_of, part_of, report

from ds_seq.config.model.adaptive import AdaptiveConfig
from ds_seq.modules.adaptive import AdaptiveEmbedding, AdaptiveSoftmax

SIDE = Path(__file__).with_name("fairseq_adaptive_side.py")
VOCAB, WIDTH, PAD = 40, 32, 1
CUTOFFS = [12, 20, 31]
CASES: dict[str, tuple[bool, bool, int]] = {
    "tied, with projections": (True, True, 3),
    "tied tables": (True, False, 2),
    "apart": (False, False, 2),
}
"""Whether tables and projections are tied, and how many times narrower each band is."""


def as_ours(theirs: Mapping[str, Tensor], tied: bool, tied_projections: bool) -> dict[str, Tensor]:
    """Return tensors of fairseq's modules by our names."""
    ours = {}
    for band in range(len(CUTOFFS) + 1):
        place = f"input.embeddings.{band}"
        ours[f"embedding.bands.{band}.weight"] = theirs[f"{place}.0.weight"]
        ours[f"embedding.bands.{band}.projection"] = theirs[f"{place}.1.weight"]
    if tied:
        ours["output.choice.weight"] = theirs["softmax.head.class_proj.weight"]
    else:
        head = theirs["softmax.head.weight"]
        ours["output.bands.0.weight"], ours["output.choice.weight"] = head.tensor_split(CUTOFFS[:1])
    for tail in range(len(CUTOFFS)):
        place = f"softmax.tail.{tail}"
        if not tied:
            ours[f"output.bands.{tail + 1}.weight"] = theirs[f"{place}.2.weight"]
            ours[f"output.bands.{tail + 1}.projection"] = theirs[f"{place}.0.weight"].T
        elif not tied_projections:
            ours[f"output.narrow.{tail}.weight"] = theirs[f"{place}.0.weight"]
    return ours


def compare(
    cases: Mapping[str, tuple[bool, bool, int]], case: str, tensors: dict[str, Tensor]
) -> tuple[float, float]:
    """Return the largest error of the outputs and of all gradients, relative to their largest."""
    tied, tied_projections, factor = cases[case]
    bands = AdaptiveConfig(cutoffs=CUTOFFS, factor=factor).bands(WIDTH, VOCAB)
    ends = torch.nn.ModuleDict(
        {
            "embedding": AdaptiveEmbedding(bands, WIDTH, PAD, scaled=False),
            "output": AdaptiveSoftmax(bands, WIDTH, tied, tied_projections, 0.0),
        }
    ).double()
    weights, gradients = (
        as_ours(part_of(tensors, case, kind), tied, tied_projections)
        for kind in ("weights", "gradients")
    )
    ends.load_state_dict(weights)
    values = part_of(tensors, case, "values")
    hidden, labels, embedding = values["hidden"], values["labels"], ends["embedding"]
    full = ends["output"](hidden, embedding).detach()
    of_labels = ends["output"](hidden, embedding, labels)[:, None]
    output = torch.cat([embedding(values["tokens"]), full, of_labels], 1)
    (output * values["factors"]).sum().backward()
    found = {name: weight.grad for name, weight in ends.named_parameters()}
    return differences(output, values["output"], found, gradients)


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    options = parser_of(__doc__, "fairseq-fixed").parse_args(argv)
    return report(CASES, options.python, SIDE, check=compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
