#!/usr/bin/env python3
"""The side of fairseq of `fairseq_import.py`: make checkpoints, and compute with them.

    PYTHON_WITH_FAIRSEQ fairseq_import_side.py DATA PAIRS.json VARIANTS.json OUT

For each variant, a name and flags, it writes OUT/NAME.pt as fairseq's trainer writes it, and
OUT/NAME.logits.pt: the logits of every next token of the pairs of ids, in float64, of the model
that fairseq itself loads from that file; language models and RoBERTa read the sources of the pairs
with the dictionary in OUT/text, and adaptive softmax returns log-probabilities. Flags of ours:
`--old` writes the file as before 0.10.2, and `--float32` computes in that precision, because some
masks of VarunGumma/fairseq are not numbers in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():  # a module of VarunGumma/fairseq asks for it when it is imported
    torch.cuda.get_device_name = lambda *_: "none"  # type: ignore[assignment]

from fairseq import checkpoint_utils, options, tasks  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.models import FairseqEncoderModel, FairseqLanguageModel  # noqa: E402

_OF_ONE_SIDE = {"language_modeling", "denoising", "masked_lm"}  # tasks


def main(folder: str, pairs: str, variants: str, out: str) -> None:
    """Make all variants."""
    sentences = json.loads(Path(pairs).read_text(encoding="utf-8"))
    for name, flags in json.loads(Path(variants).read_text(encoding="utf-8")).items():
        path = f"{out}/{name}.pt"
        words = flags.split()
        data = f"{out}/text" if _OF_ONE_SIDE & {*words} else folder
        make(data, path, [word for word in words if word != "--float32"])
        dtype = torch.float32 if "--float32" in words else torch.float64
        torch.save(logits(path, data, sentences, dtype), f"{out}/{name}.logits.pt")


def make(data: str, out: str, flags: list[str]) -> None:
    """Write a checkpoint of a model with random weights.

    Norms and biases are random, too, so that none of them can be mixed up without a difference.
    """
    is_old = "--old" in flags  # as before fairseq 0.10.2
    parser = options.get_training_parser()
    words = [data, *(flag for flag in flags if flag != "--old")]
    arguments = options.parse_args_and_arch(parser, input_args=words)
    config = convert_namespace_to_omegaconf(arguments)
    task = tasks.setup_task(config.task)
    torch.manual_seed(1)
    model = task.build_model(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    content: dict[str, Any] = {
        "args": arguments if is_old else None,
        "cfg": None if is_old else config,
        "model": model.state_dict(),
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 7,
            }
        ],
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0},
            "metrics": [("default", [(1, "loss", "AverageMeter", {})])],
        },
        "last_optimizer_state": None,
    }
    checkpoint_utils.torch_persistent_save(content, out)


def logits(
    checkpoint: str, data: str, sentences: list[Any], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return the logits of pairs of ids."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [checkpoint], arg_overrides={"data": data}
    )
    model = models[0].to(dtype).eval()
    with torch.no_grad():
        if isinstance(model, FairseqEncoderModel):
            return [model(torch.tensor([text]))[0][0] for text, _ in sentences]
        if isinstance(model, FairseqLanguageModel):
            return [
                model.get_normalized_probs(model(torch.tensor([text])), log_probs=True)[0]
                if model.decoder.adaptive_softmax is not None
                else model(torch.tensor([text]))[0][0]
                for text, _ in sentences
            ]
        return [
            model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))[0][0]
            for source, target in sentences
        ]


if __name__ == "__main__":
    main(*sys.argv[1:])
