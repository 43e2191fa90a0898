"""`model.moe` sections for the tests of this folder."""

from __future__ import annotations

from typing import Any

# a `moe` section of every router; dropless but for what experts choose
ROUTERS: dict[str, dict[str, Any]] = {
    name: {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None, "router": name}
    for name in ("softmax", "cosine", "sigmoid", "expert_choice", "language", "hash")
}
ROUTERS["expert_choice"]["placement"] = "encoder"
