#!/usr/bin/env python3
"""Record the options of `fairseq-train`, and what architectures imply.

Those of translation, of language models, and of the tasks that learn from noisy text.

Runs in an environment with fairseq (`benchmarks/fairseq_venv.py` makes one), and writes the facts
with which `tests/unit/compat` compares the table of `ds-seq from-fairseq`:

    PYTHON_WITH_FAIRSEQ benchmarks/parity/fairseq_flags.py tests/data/fairseq_flags.json
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY

CRITERIONS = (
    "cross_entropy label_smoothed_cross_entropy label_smoothed_cross_entropy_with_alignment "
    "label_smoothed_cross_entropy_with_ctc label_smoothed_cross_entropy_with_rdrop "
    "latency_augmented_label_smoothed_cross_entropy adaptive_loss composite_loss model"
).split()
TASKS = ("translation", "language_modeling", "denoising", "masked_lm")
_PLAIN = ("transformer_lm", "lightconv_lm", "fconv_lm", "lstm_lm")
LANGUAGE_MODELS = [name for name in ARCH_MODEL_REGISTRY if name.startswith(_PLAIN)]
NOISY_MODELS = [
    name
    for name, model in ARCH_MODEL_REGISTRY.items()
    if model.__name__ in ("BARTModel", "RobertaModel")
]
_OF_MODELS = (
    "decoder_", "adaptive_", "tie_adaptive", "dropout", "attention_dropout", "activation_",
    "relu_dropout", "weight_", "input_dropout", "share_", "no_", "character_", "residuals",
    "encoder_", "layernorm_embedding", "untie_weights",
)  # fmt: skip
_KINDS = {"_StoreTrueAction": "switch", "_StoreFalseAction": "off"}


def main() -> int:
    """Write the file that the command line names; return the exit status."""
    flags: dict[str, list[Any]] = {}
    for parser in (options.get_training_parser(), *_parts()):
        for action in parser._actions:
            for name in action.option_strings:
                if name not in ("-h", "--help"):
                    flags.setdefault(name, []).append([_kind(action), _default(action.default)])
    architectures = {
        name: _implied(name)
        for name, model in ARCH_MODEL_REGISTRY.items()
        if model.__name__ in ("TransformerModel", "TransformerAlignModel")
    }
    content = {
        "flags": dict(sorted(flags.items())),
        "architectures": architectures,
        "language_models": {
            name: _parsed(name, "language_modeling") for name in sorted(LANGUAGE_MODELS)
        },
        "noisy_models": {name: _parsed(name, _noisy_task(name)) for name in sorted(NOISY_MODELS)},
    }
    Path(sys.argv[1]).write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    print(f"{len(flags)} names of flags, {len(architectures)} architectures")
    return 0


def _parts() -> list[argparse.ArgumentParser]:
    """Return a parser with the options of each part that a translation may have."""
    owners = [TASK_REGISTRY[name] for name in TASKS]
    models = ("transformer", "transformer_align", *(n for n in LANGUAGE_MODELS if n in _PLAIN))
    models += ("bart_base", "roberta")
    owners += [ARCH_MODEL_REGISTRY[name] for name in models]
    for kind, registry in REGISTRIES.items():
        for name, owner in registry["registry"].items():
            if kind != "criterion" or name in CRITERIONS:
                owners.append(owner)
    parsers = []
    for owner in owners:
        parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
        if hasattr(owner, "add_args"):
            owner.add_args(parser)
        elif getattr(owner, "__dataclass", None):
            gen_parser_from_dataclass(parser, owner.__dataclass())
        parsers.append(parser)
    return parsers


def _kind(action: argparse.Action) -> str:
    if type(action).__name__ in _KINDS:
        return _KINDS[type(action).__name__]
    if action.nargs == "?":
        return "optional"
    return getattr(action.type, "__name__", "") if action.type in (int, float) else "other"


def _default(value: Any) -> Any:
    """Return a default as JSON has it; None where fairseq has none."""
    if value in (argparse.SUPPRESS, "???"):
        return None
    try:
        value = ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        value = str(value)
    return json.loads(json.dumps(value))


def _implied(name: str) -> dict[str, Any]:
    arguments = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[name](arguments)
    return {key: value for key, value in vars(arguments).items() if value is not None}


def _noisy_task(name: str) -> str:
    return "masked_lm" if ARCH_MODEL_REGISTRY[name].__name__ == "RobertaModel" else "denoising"


def _parsed(name: str, task: str) -> dict[str, Any]:
    """Return the arguments of a command that names nothing but a task and an architecture."""
    words = ["data", "--task", task, "--arch", name]
    arguments = options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    known = [key for key in vars(arguments) if key.startswith(_OF_MODELS)]
    return {key: vars(arguments)[key] for key in sorted(known)}


if __name__ == "__main__":
    sys.exit(main())
