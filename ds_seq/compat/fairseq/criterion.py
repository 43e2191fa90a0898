"""The section `criterion` of a command of fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_seq.compat.fairseq.command import BY_DEST, Given
from ds_seq.compat.fairseq.flag import changes
from ds_seq.compat.fairseq.refusals import Refusals

_PLAIN = ("cross_entropy", "label_smoothed_cross_entropy")
_DISTILLING = "label_smoothed_cross_entropy_with_kd"
_LATER_DISTILLING = "lm_distillation_loss"
_COMBINED = "model_and_base"
_KNOWN = (*_PLAIN, _DISTILLING, _LATER_DISTILLING, _COMBINED)

_SELECTIVE = ("batch_level", "global_level", "global_language_wise")
_STRATEGIES = ("word_level", "word_seq_level", *_SELECTIVE)
_DIVERGENCES = {"kl_div": "forward_kl", "js_div": "js", "tvd": "tv"}
_GATE_LOSS, _BASE = "experts_gate_loss", "base_crit"


class CriterionReader:
    """Makes the section `criterion`.

    Args:
        given: the arguments.
        name: name of the run, after which the imported teacher is named.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.

    Attributes:
        needs: (what was a checkpoint of fairseq, the folder that `ds-seq import` makes of it).
    """

    def __init__(self, given: Given, name: str, refusals: Refusals, notes: list[str]) -> None:
        self.given, self._name = given, name
        self._refuse, self._note = refusals.add, notes.append
        self.needs: list[tuple[str, str]] = []

    def section(self) -> dict[str, Any]:
        """Return the section."""
        name = self.given["criterion"]
        if name != _COMBINED:
            return self._base("--criterion", name, {})
        base = self._base(
            "--base-criterion", self.given["base_criterion"], self.given["base_criterion_config"]
        )
        return {"name": "model_and_base", "base": base, "loss_weights": self._weights()}

    def _base(self, flag: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        known = [each for each in _KNOWN if each != _COMBINED or flag == "--criterion"]
        if name not in known:
            self._refuse(f"{flag} {name or 'is missing'}: give one of {', '.join(known)}")
            return {}
        for key, value in config.items():
            row = BY_DEST.get(key)
            if row is None or (row.fate == "refused" and changes(row, value)):
                why = "no such option" if row is None else row.note
                self._refuse(f"--base-criterion-config {key}: {why}")
        given = Given.of({**self.given.values, **config}, self.given.data)
        smoothing = {
            "label_smoothing": 0.0 if name == "cross_entropy" else float(given["label_smoothing"])
        }
        if name in _PLAIN:
            return {"name": "cross_entropy", **smoothing}
        more = self._later(given) if name == _LATER_DISTILLING else self._selective(given)
        return {"name": "distillation", "teacher": self._teacher(given), **more, **smoothing}

    def _teacher(self, given: Given) -> str:
        path = given["teacher_checkpoint_path"]
        if not path:
            self._refuse("--teacher-checkpoint-path is missing; give the teacher of the criterion")
        folder = f"runs/{self._name}-teacher"
        self.needs.append((path or "", folder))
        return folder

    def _selective(self, given: Given) -> dict[str, Any]:
        strategy, divergence = given["kd_strategy"], given["kd_criterion"]
        if strategy not in _STRATEGIES:
            self._refuse(f"--kd-strategy {strategy}: give one of {', '.join(_STRATEGIES)}")
        if divergence not in _DIVERGENCES:
            self._refuse(f"--kd-criterion {divergence}: give one of {', '.join(_DIVERGENCES)}")
        if divergence == "js_div":
            self._note(
                "--kd-criterion js_div: becomes the Jensen-Shannon divergence; what fairseq's "
                "descendant computes under this name has both Kullback-Leibler terms turned round"
            )
        section = {"strategy": strategy, "divergence": _DIVERGENCES.get(divergence, "")}
        if strategy in _SELECTIVE:
            for flag, key in (("kd_rate", "rate"), ("kd_queue_size", "queue_size")):
                if key == "queue_size" and strategy == "batch_level":
                    continue
                if given[flag] is None:
                    self._refuse(
                        f"{given.name(flag)} is missing; --kd-strategy {strategy} needs it"
                    )
                section[key] = given[flag]
            self._note(
                f"--kd-strategy {strategy}: only real tokens are counted, of which --kd-rate is "
                "the share that is distilled; fairseq's descendant counts padding, too"
            )
        if strategy in _SELECTIVE[1:]:
            section["shared_queue"] = False  # each rank has its own, with the current batch in it
        return section

    def _later(self, given: Given) -> dict[str, Any]:
        options = given["kd_args"] or {}
        share = options.get("lambda", 1.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            self._refuse(f"--kd-args lambda {share}: should be above 0 and at most 1")
            share = 1.0
        unused = [key for key in ("strategy", "beta", "loss_type") if key in options]
        if unused:
            self._note(
                f"--kd-args: {', '.join(unused)} select nothing in fairseq's descendant, which "
                "always computes the forward divergence on the given text, as here"
            )
        return {
            "strategy": "word_seq_level",
            "kd_weight": float(share),
            "ce_weight": round(1.0 - share, 12),
        }

    def _weights(self) -> dict[str, float | None]:
        """Return the weights of the losses, of which that of the router has another scale here."""
        weights = dict(self.given["loss_weights"])
        base_names = [key for key in weights if key not in (_GATE_LOSS, _BASE)]
        for key in base_names:
            if not key.lower().endswith("criterion"):  # the name of its class
                self._refuse(
                    f"--loss-weights {key}: no such loss; there are {_BASE} and {_GATE_LOSS}"
                )
        wrong = [k for k, v in weights.items() if isinstance(v, bool | str | list | dict)]
        for key in wrong:
            self._refuse(f"--loss-weights {key}: should be a number or null")
        if wrong:
            return {}
        base = weights.get(base_names[0] if base_names else _BASE, 1.0)
        gate = weights.get(_GATE_LOSS, 1.0)
        section: dict[str, float | None] = {"base": base, "router_z": 0.0}
        section["load_balance"] = self._per_token(gate) if gate else 0.0
        return section

    def _per_token(self, gate: float) -> float:
        tokens = self.given["max_tokens"]
        if tokens is None:
            self._refuse("--loss-weights: give --max-tokens, by which the gate's weight is divided")
            return 0.0
        weight = float(f"{gate / tokens:.4g}")
        self._note(
            f"--loss-weights {_GATE_LOSS} {gate:g} becomes load_balance {weight:g}: fairseq adds "
            f"it once per batch to a loss that is a sum over about {tokens} tokens, ds_seq once "
            "per token"
        )
        return weight
