"""fairseq_axes.py: fairseq's models, run by the interpreter of their own environment.

    python fairseq_axes_side.py OUT.safetensors

Writes, for each case, weights, inputs, outputs and the gradients of the weights for the loss
`sum(outputs * factors)`, as `CASE/KIND/NAME`.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_side import make_dictionary
from parity.peer_tensors import drawn, save_cases, sequences

VOCAB, MAX_POSITIONS = 40, 64
SIZES = "--encoder-layers 3 --decoder-layers 2"
for _side in ("encoder", "decoder"):
    SIZES += f" --{_side}-embed-dim 32 --{_side}-ffn-embed-dim 48 --{_side}-attention-heads 4"
_PRE = "--encoder-normalize-before --decoder-normalize-before"
_LEARNED = "--encoder-learned-pos --decoder-learned-pos"
CASES = {
    "post-norm, sinusoidal": "--share-all-embeddings",
    "pre-norm, learned, gelu": (
        f"{_PRE} {_LEARNED} --activation-fn gelu --share-decoder-input-output-embed"
    ),
    "no sharing, relu": f"{_PRE} --activation-fn relu",
    "embedding norm, unscaled": (
        f"{_LEARNED} --share-all-embeddings --layernorm-embedding --no-scale-embedding"
    ),
    "no positions, gelu_tanh": (
        "--no-token-positional-embeddings --activation-fn gelu_accurate --share-all-embeddings"
    ),
}


def model_of(flags: str, arch: str = "transformer", sizes: str = SIZES) -> nn.Module:
    """Return a model of this architecture with these flags, with weights drawn anew."""
    words = ["unused", "--cpu", "--task", "translation", "--arch", arch]
    words += [*sizes.split(), *flags.split(), "--dropout", "0"]
    words += ["--max-source-positions", str(MAX_POSITIONS)]
    words += ["--max-target-positions", str(MAX_POSITIONS)]
    arguments = options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    config = convert_namespace_to_omegaconf(arguments)
    dictionary = make_dictionary(VOCAB)
    model = TranslationTask(config.task, dictionary, dictionary).build_model(config.model)
    return drawn(model)


def run(model: nn.Module) -> dict[str, Tensor]:
    """Return inputs of a model, and its output."""
    values = sequences(VOCAB)
    lengths = values["source_mask"].sum(1)
    logits, _ = model(values["source"], lengths, values["target"])
    return {**values, "output": logits[values["target_mask"]]}


def main(out: str) -> None:
    """Run all cases."""
    cases = {case: model_of(flags) for case, flags in CASES.items()}
    save_cases({case: (model, run(model)) for case, model in cases.items()}, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(sys.argv[1])
