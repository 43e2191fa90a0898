"""fairseq_convolution.py: fairseq's models, run by the interpreter of their own environment.

    python fairseq_convolution_side.py OUT.safetensors

Writes what `fairseq_axes_side.py` writes, of convolutional models.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity import fairseq_lm_side
from parity.fairseq_axes_side import model_of, run
from parity.peer_tensors import save_cases

_SIZES = "--weight-dropout 0 --input-dropout 0 --relu-dropout 0 --share-all-embeddings"
_KERNELS = "--encoder-kernel-size-list [3,7,15] --decoder-kernel-size-list [3,7]"
_LIGHT = "--encoder-conv-type lightweight --decoder-conv-type lightweight"
CASES = {
    "dynamic": _KERNELS,
    "lightweight": f"{_KERNELS} {_LIGHT}",
    "dynamic, pre-norm, no GLU": (
        f"{_KERNELS} --encoder-glu False --decoder-glu False --encoder-normalize-before "
        "--decoder-normalize-before --encoder-learned-pos --decoder-learned-pos"
    ),
    "lightweight, wide, no softmax": (
        f"{_LIGHT} --weight-softmax False --encoder-conv-dim 48 --decoder-conv-dim 16 "
        "--encoder-kernel-size-list [5,5,5] --decoder-kernel-size-list [4,31]"
    ),
}

_WHOLE = "--encoder-embed-dim 32 --decoder-embed-dim 32"
GATED = {
    "fconv": (
        f"{_WHOLE} --encoder-layers [(32,3),(48,4),(48,1)] --decoder-layers [(32,3),(24,2),(24,1)] "
        "--decoder-out-embed-dim 16"
    ),
    "fconv, shared": (
        f"{_WHOLE} --encoder-layers [(48,5)]*2 --decoder-layers [(32,9)]*2 "
        "--decoder-out-embed-dim 32 --share-input-output-embed"
    ),
}
_LM = (
    "--decoder-embed-dim 32 --decoder-ffn-embed-dim 48 --decoder-attention-heads 4 "
    "--decoder-layers 2 --decoder-kernel-size-list [3,7]"
)
_BANDS = "--criterion adaptive_loss --adaptive-softmax-cutoff 12,20"
LANGUAGE_MODELS = {
    "lightconv_lm": f"--arch lightconv_lm {_LM}",
    "lightconv_lm, light, tied": (
        f"--arch lightconv_lm {_LM} --decoder-conv-type lightweight "
        "--share-decoder-input-output-embed"
    ),
    "fconv_lm": (
        "--arch fconv_lm --decoder-embed-dim 32 "
        "--decoder-layers [(24,3),(16,1,0),(16,4,0),(40,1,3),(40,2)]"
    ),
    "fconv_lm, adaptive": (
        f"--arch fconv_lm --decoder-embed-dim 32 --decoder-layers [(48,4)]*2 {_BANDS}"
    ),
}


def main(out: str) -> None:
    """Run all cases."""
    models = {case: model_of(f"{_SIZES} {flags}", "lightconv") for case, flags in CASES.items()}
    models |= {case: model_of(flags, "fconv", "") for case, flags in GATED.items()}
    cases = {case: (model, run(model)) for case, model in models.items()}
    for case, flags in LANGUAGE_MODELS.items():
        more = "--attention-dropout 0 --weight-dropout 0 --input-dropout 0 --relu-dropout 0"
        dropout = f"--dropout 0 {more}" if "lightconv" in case else "--dropout 0"
        model = fairseq_lm_side.model_of(flags, "", dropout)
        cases[case] = (model, fairseq_lm_side.run(model))
    save_cases(cases, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(sys.argv[1])
