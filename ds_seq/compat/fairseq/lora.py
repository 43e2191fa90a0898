"""LoRA of VarunGumma/fairseq as the section `model.lora`."""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals

PART = "lora"
"""What `train.trainable` calls it."""

_MODULES = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "output",
    "fc1": "up",
    "fc2": "down",
}
_KNOWN = ("r", "alpha", "dropout", "bias", "target_modules", "rank_scaled")


def lora_section(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    """Return the section `lora`; None if there is none.

    Args:
        given: the arguments.
        refusals: gets what no LoRA of ds_seq has.
    """
    options = given["lora_args"]
    if options is None:
        return None
    for key in options:
        if key not in _KNOWN:
            refusals.add(f"--lora-args {key}: no such key; there are {', '.join(_KNOWN)}")
    if options.get("bias", "none") != "none":
        refusals.add(f"--lora-args bias {options['bias']}: biases stay frozen; give none")
    names = [n.strip() for n in str(options.get("target_modules", "")).split(",") if n.strip()]
    unknown = [name for name in names if name not in _MODULES]
    if unknown or not names:
        known = ", ".join(_MODULES)
        refusals.add(f"--lora-args target_modules {','.join(unknown)}: there are {known}")
    wrong = [k for k in ("r", "alpha", "dropout") if not _is_number(options.get(k, 1))]
    if wrong:
        refusals.add(f"--lora-args {wrong[0]}: should be a number")
        return None
    section: dict[str, Any] = {"modules": [_MODULES[n] for n in names if n in _MODULES]}
    for key, ours in (("r", "rank"), ("alpha", "alpha"), ("dropout", "dropout")):
        section |= {ours: options[key]} if key in options else {}
    return section | {"rank_stabilized": bool(options.get("rank_scaled"))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
