"""fairseq_adaptive.py: fairseq's modules, run by the interpreter of their own environment.

    python fairseq_adaptive_side.py OUT.safetensors

Writes what `fairseq_axes_side.py` writes, of adaptive input and adaptive softmax: the embeddings of
the inputs, and the log-probabilities of all tokens and of the labels alone, whose gradients are
those of training.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.peer_tensors import drawn, save_cases

VOCAB, WIDTH, ROWS, PAD = 40, 32, 57, 1
CUTOFFS = [12, 20, 31]
CASES = {
    "tied, with projections": (True, True, 3),
    "tied tables": (True, False, 2),
    "apart": (False, False, 2),
}


class Ends(nn.Module):
    """What stands at both ends of a language model."""

    def __init__(self, tied: bool, tie_projections: bool, factor: int) -> None:
        super().__init__()
        self.input = AdaptiveInput(VOCAB, PAD, WIDTH, factor, WIDTH, list(CUTOFFS))
        self.softmax = AdaptiveSoftmax(
            VOCAB,
            WIDTH,
            list(CUTOFFS),
            0.0,
            factor,
            adaptive_inputs=self.input if tied else None,
            tie_proj=tie_projections,
        )


def run(model: Ends) -> dict[str, Tensor]:
    """Return inputs and outputs: per row, embedding, all log-probabilities, that of the label."""
    generator = torch.Generator().manual_seed(4)
    tokens, labels = torch.randint(2, VOCAB, (2, ROWS), generator=generator)
    hidden = 0.3 * torch.randn(ROWS, WIDTH, generator=generator).double()
    outputs, targets = model.softmax(hidden, labels)
    first, *tails = (
        None if scores is None else F.log_softmax(scores, -1).gather(1, target[:, None])
        for scores, target in zip(outputs, targets, strict=True)
    )
    of_labels = first
    for (low, high), tail in zip(
        zip(CUTOFFS, [*CUTOFFS[1:], VOCAB], strict=True), tails, strict=True
    ):
        rows = ((labels >= low) & (labels < high)).nonzero().squeeze(1)
        of_labels = of_labels.index_add(0, rows, tail)
    full = model.softmax.get_log_prob(hidden[None], None)[0].detach()
    output = torch.cat([model.input(tokens), full, of_labels], 1)
    return {"tokens": tokens, "labels": labels, "hidden": hidden, "output": output}


def main(out: str) -> None:
    """Run all cases."""
    models = {case: drawn(Ends(*options)) for case, options in CASES.items()}
    save_cases({case: (model, run(model)) for case, model in models.items()}, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(sys.argv[1])
