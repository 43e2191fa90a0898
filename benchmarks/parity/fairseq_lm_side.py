"""fairseq_lm.py: fairseq's language models, run by the interpreter of their own environment.

python fairseq_lm_side.py OUT.safetensors                # what fairseq_axes_side.py writes
python fairseq_lm_side.py OUT.pt DATA CHECKPOINT         # logits of a checkpoint, in float64
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.language_modeling import LanguageModelingTask
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_side import make_dictionary
from parity.peer_tensors import drawn, save_cases, sequences

VOCAB, MAX_POSITIONS = 40, 64
_SIZES = (
    "--decoder-embed-dim 32 --decoder-input-dim 32 --decoder-output-dim 32 "
    "--decoder-ffn-embed-dim 48 --decoder-attention-heads 4 --decoder-layers 2"
)
_DROPOUT = "--dropout 0 --attention-dropout 0"
_BANDS = "--criterion adaptive_loss --adaptive-softmax-cutoff 12,20"
CASES = {
    "transformer_lm": "--arch transformer_lm",
    "transformer_lm_gpt, tied": "--arch transformer_lm_gpt --share-decoder-input-output-embed",
    "transformer_lm_gpt3_small": "--arch transformer_lm_gpt3_small",
    "embedding norm, unscaled": (
        "--arch transformer_lm_big --decoder-learned-pos --layernorm-embedding --no-scale-embedding"
    ),
    "adaptive, tied": (
        f"--arch transformer_lm_big {_BANDS} --adaptive-input --adaptive-input-cutoff 12,20 "
        "--tie-adaptive-weights --tie-adaptive-proj --no-decoder-final-norm"
    ),
    "characters": (
        "--arch transformer_lm_gpt --character-embeddings --character-embedding-dim 4 "
        "--character-filters [(1,8),(3,12)] --char-embedder-highway-layers 2"
    ),
    "adaptive softmax": f"--arch transformer_lm_gpt {_BANDS}",
}
_BLOCKS = 20


def model_of(flags: str, sizes: str = _SIZES, dropout: str = _DROPOUT) -> nn.Module:
    """Return a model with these flags, with weights drawn anew."""
    words = ["unused", "--cpu", "--task", "language_modeling", *sizes.split(), *flags.split()]
    words += dropout.split()
    words += ["--tokens-per-sample", str(MAX_POSITIONS)]
    arguments = options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    config = convert_namespace_to_omegaconf(arguments)
    dictionary = make_dictionary(VOCAB)
    return drawn(LanguageModelingTask(config.task, dictionary).build_model(config.model))


def run(model: nn.Module) -> dict[str, Tensor]:
    """Return inputs of a model, and its output."""
    values = sequences(VOCAB)
    values = {"target": values["target"], "target_mask": values["target_mask"]}
    values["target"][:, 0], values["target"][0, 2] = 2, 3  # the end of a text, an unknown token
    return {**values, "output": scores(model, values["target"])[values["target_mask"]]}


def scores(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits (B, T, V) of a model, or log-probabilities of an adaptive softmax.

    fairseq's own function for these changes tensors in place, and has no gradients.
    """
    output, _ = model(tokens)
    softmax = model.decoder.adaptive_softmax
    if softmax is None:
        return output
    head = softmax.head(output.flatten(0, 1)).log_softmax(-1)
    parts = [head[:, : softmax.cutoff[0]]]
    for number, tail in enumerate(softmax.tail):
        chosen = head[:, softmax.cutoff[0] + number, None]
        parts.append(tail(output.flatten(0, 1)).log_softmax(-1) + chosen)
    found = torch.cat(parts, 1).unflatten(0, output.shape[:2])
    torch.testing.assert_close(found, softmax.get_log_prob(output, None))
    return found


def logits_of(data: str, checkpoint: str) -> list[Any]:
    """Return blocks of the test data as ids, the token before each first, and their logits."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [checkpoint], arg_overrides={"data": data}
    )
    model = models[0].double().eval()
    task.load_dataset("test")
    texts = (task.datasets["test"][n]["source"] for n in range(_BLOCKS))
    with torch.no_grad():
        return [(text.tolist(), scores(model, text[None])[0]) for text in texts]


def main(out: str, *checkpoint: str) -> None:
    """Run all cases, or a checkpoint."""
    if checkpoint:
        # the extension that cuts text is not there
        from parity.fairseq_run import install

        install()
        torch.save(logits_of(*checkpoint), out)
    else:
        models = {case: model_of(flags) for case, flags in CASES.items()}
        save_cases({case: (model, run(model)) for case, model in models.items()}, out)
    print(json.dumps({"fairseq-fixed": version("fairseq-fixed")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
