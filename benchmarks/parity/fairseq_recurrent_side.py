"""fairseq_recurrent.py: fairseq's models, run by the interpreter of their own environment.

    python fairseq_recurrent_side.py OUT.safetensors

Writes what `fairseq_axes_side.py` writes, of LSTM models.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.fairseq_axes_side import VOCAB, model_of
from parity.peer_tensors import save_cases, sequences

_SIZES = "--encoder-embed-dim 32 --decoder-embed-dim 32"
CASES = {
    "lstm": "--decoder-out-embed-dim 32",
    "two layers, both ways": (
        "--encoder-layers 2 --decoder-layers 2 --encoder-bidirectional --encoder-hidden-size 12 "
        "--decoder-hidden-size 20 --decoder-out-embed-dim 16"
    ),
    "both ways, shared": (
        "--encoder-bidirectional --encoder-hidden-size 16 --decoder-hidden-size 32 "
        "--decoder-out-embed-dim 32 --share-all-embeddings"
    ),
    "no attention": (
        "--encoder-layers 3 --decoder-layers 3 --decoder-attention False "
        "--decoder-out-embed-dim 32 --share-decoder-input-output-embed"
    ),
}


def run(model: nn.Module) -> dict[str, Tensor]:
    """Return inputs, the longest source first as these models need it, and the output."""
    values = sequences(VOCAB)
    order = values["source_mask"].sum(1).argsort(descending=True)
    values = {name: value[order] for name, value in values.items()}
    lengths = values["source_mask"].sum(1)
    logits, _ = model(values["source"], lengths, values["target"])
    return {**values, "output": logits[values["target_mask"]]}


def main(out: str) -> None:
    """Run all cases."""
    models = {case: model_of(flags, "lstm", _SIZES) for case, flags in CASES.items()}
    save_cases({case: (model, run(model)) for case, model in models.items()}, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(sys.argv[1])
