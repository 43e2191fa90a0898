"""fairseq_mixture.py: mixtures of fairseq, run by the interpreter of their own environment.

    python fairseq_mixture_side.py OUT.safetensors

Writes, for each method of `translation_moe`, weights, inputs, the loss of a batch in evaluation
mode, and its gradients, as `CASE/KIND/NAME`.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import fairseq
import torch
from fairseq import options
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from torch import Tensor, nn

sys.path.insert(0, str(Path(fairseq.__file__).parent / "examples" / "translation_moe"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_side import make_dictionary
from parity.fairseq_axes_side import SIZES
from parity.peer_tensors import drawn, save_cases, sequences
from translation_moe_src.translation_moe import TranslationMoETask

EXPERTS, WORDS, END, SMOOTHING = 3, 37, 2, 0.1
METHODS = ("hMoEup", "hMoElp", "sMoEup", "sMoElp")


def run(method: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model, and its inputs with the loss."""
    words = ["unused", "--cpu", "--task", "translation_moe", "--arch", "transformer"]
    words += ["--method", method, "--num-experts", str(EXPERTS), "--mean-pool-gating-network"]
    words += [*SIZES.split(), "--share-all-embeddings", "--dropout", "0"]
    # without dropout in the model, which counts as none given, it asks for that of the network
    words += ["--mean-pool-gating-network-dropout", "0.1"]
    arguments = options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    dictionary = make_dictionary(WORDS)
    task = TranslationMoETask(arguments, dictionary, dictionary)
    model = drawn(task.build_model(arguments))
    values = sequences(WORDS)
    labels, mask = values["target"], values["target_mask"]
    started = labels.roll(1, 1)
    started[:, 0] = END
    values["target"] = started.masked_fill(~mask, dictionary.pad())
    sample = {
        "target": labels,
        "ntokens": int(mask.sum()),
        "net_input": {
            "src_tokens": values["source"],
            "src_lengths": values["source_mask"].sum(1),
            "prev_output_tokens": values["target"].clone(),
        },
    }
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, SMOOTHING)
    loss, _, _ = task._get_loss(sample, model, criterion)
    starts = torch.tensor([task.expert_index(expert) for expert in range(EXPERTS)])
    return model, {**values, "labels": labels, "starts": starts, "output": loss}


def main(out: str) -> None:
    """Run all methods."""
    save_cases({method: run(method) for method in METHODS}, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(sys.argv[1])
