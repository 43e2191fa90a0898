"""gpu.py: a short summary of the figures. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MACHINE = (
    "device",
    "torch",
    "cudnn",
    "copy_tb_s",
    "matmul_bf16_tflops",
    "matmul_fp16_tflops",
    "sdpa_order",
)
_TRAINING = (
    "max_tokens",
    "out_of_memory",
    "ms_per_step",
    "host_ms_per_step",
    "first_ms",
    "target_tokens_per_s",
    "mfu",
    "hfu_padded",
    "peak_gb",
)
_TABLES = ("attention", "moe_layer", "loss", "generate")
_ENDINGS = ("error", "skipped", "cut", "note")


def summary(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures of all sections, a few lines each.

    Args:
        figures: figures by section, as in bench.json.
    """
    devices = sorted({found["device"] for found in figures.values() if "device" in found})
    lines = ["", f"== figures of {', '.join(devices) or 'no device'}"]
    for name, found in figures.items():
        lines += [f"{name:20} {line}" for line in _lines(name, found)]
    return "\n".join(lines)


def _lines(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    if name == "machine":
        yield _pick(found, _MACHINE)
    elif name.startswith("train") or name == "compiled":
        yield from _training(found)
    elif name in _TABLES:
        for key, value in found.items():
            if isinstance(value, dict) and "top" not in value:
                yield f"{key:42} {json.dumps(value)[:150]}"
    for case, failure in found.get("failures", {}).items():
        yield f"{case}: {failure[:180]}"
    for key in _ENDINGS:
        if key in found:
            yield f"{key}: {found[key][:300]}"


def _training(found: Mapping[str, Any]) -> Iterator[str]:
    rows = found.get("rows") or [found[key] for key in ("eager", "compiled") if key in found]
    for row in rows:
        yield _pick(row, _TRAINING)
    if "waits_per_step" in found:
        waits = found["waits_per_step"]
        yield f"waits {sum(waits.values())}: {list(waits.items())[:6]}"
    if "profile" in found:
        profile = found["profile"]
        yield (
            f"busy {profile['busy_ms']} ms, launches {profile['launches']}, {profile['kinds_ms']}"
        )


def _pick(found: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return " ".join(f"{key}={found[key]}" for key in keys if key in found)
