"""The sections `train`, `validation` and `generation` of a command, and its DeepSpeed JSON."""

from __future__ import annotations

import math
from typing import Any

from ds_seq.compat.fairseq.adapters import trained_adapter
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.lora import PART
from ds_seq.compat.fairseq.refusals import Refusals

_ALL = 1_000_000  # checkpoints: more than any run writes
_ENDLESS = 1_000_000_000  # updates
_VALIDATE_EVERY = 1000
_LOSSES = ("loss", "nll_loss", "ppl")
_REPLICATED = ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d")
_SHARDED = "fully_sharded"
_SCALE_WINDOW = 2**14  # updates on one GPU

# what fairseq-generate and --eval-bleu-args call it -> option, and fairseq's default
_SEARCH: dict[str, tuple[str, Any]] = {
    "beam": ("beam", 5),
    "max_len_a": ("max_len_a", 0.0),
    "max_len_b": ("max_len_b", 200),
    "min_len": ("min_len", 1),
    "lenpen": ("length_penalty", 1.0),
    "unkpen": ("unk_penalty", 0.0),
    "temperature": ("temperature", 1.0),
    "no_repeat_ngram_size": ("no_repeat_ngram", 0),
    "diverse_beam_groups": ("diverse_groups", 1),
    "diverse_beam_strength": ("diverse_strength", 0.5),
    "diversity_rate": ("diverse_siblings", 0.0),
    "sampling": ("sampling", False),
    "sampling_topk": ("sampling_top_k", 0),
    "sampling_topp": ("sampling_top_p", 1.0),
}
_WRITTEN = ("beam", "max_len_a", "max_len_b")
_OFF = -1  # what fairseq writes for a choice that is not made
_NO_SEARCH = {"nbest": 1, "unnormalized": False, "quiet": False, "score_reference": False}


class TrainReader:
    """Makes the sections about the run.

    Args:
        given: the arguments.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.
    """

    def __init__(self, given: Given, refusals: Refusals, notes: list[str]) -> None:
        self.given, self._refuse, self._note = given, refusals.add, notes.append

    @property
    def num_processes(self) -> int:
        """Number of processes that the command starts; 1 if it says nothing."""
        if self.given.typed("distributed_world_size"):
            return max(1, int(self.given["distributed_world_size"]))
        return max(1, self.given.num_devices or 1, int(self.given["ep_world_size"]))

    @property
    def precision(self) -> str:
        """The number format of the training."""
        given = self.given
        if given["bf16"] or given["memory_efficient_bf16"]:
            return "bf16"
        is_half = given["fp16"] or given["memory_efficient_fp16"] or given["amp"]
        return "fp16" if is_half else "fp32"

    def train_section(self) -> dict[str, Any]:
        """Return the section `train`."""
        given = self.given
        section: dict[str, Any] = {
            "max_tokens": given["max_tokens"],
            "max_sentences": given["batch_size"],
            "sentence_multiple": given["required_batch_size_multiple"],
            "accumulate": self._accumulate(),
            "precision": self.precision,
            "clip_norm": given["clip_norm"],
            "seed": given["seed"],
            **self._ends(),
            "log_every": given["log_interval"],
            **self._intervals(),
            **self._kept(),
        }
        if given["max_tokens"] is None and given["batch_size"] is None:
            self._refuse("--max-tokens or --batch-size is missing; give one")
        if given["ep_world_size"] > 1:
            section["expert_parallel"] = given["ep_world_size"]
        if given["write_checkpoints_asynchronously"]:
            section["background_save"] = True
        if given["heartbeat_timeout"] > 0:
            section["hang_seconds"] = float(given["heartbeat_timeout"])
        section |= self._trained_weights()
        if given["wandb_project"]:
            section["trackers"] = ["wandb"]
        if given["run_sanity_validation_steps"]:
            section["sanity_validation_batches"] = _ALL
        return section

    def _trained_weights(self) -> dict[str, Any]:
        """Return which weights are trained, and their average."""
        given, section = self.given, dict[str, Any]()
        if given["store_ema"]:
            decay, every = given["ema_decay"], given["ema_update_freq"]
            section["ema"] = {"decay": decay, "warmup": 0, "every": every}
            if every > 1:
                self._note("--ema-update-freq: the decay is raised to this power")
        trained = trained_adapter(given)
        if trained is not None:
            section["trainable"] = [f"adapters.{trained}"]
        if given["lora_args"] is not None:
            section["trainable"] = [*section.get("trainable", []), PART]
        return section

    def _accumulate(self) -> int:
        values = self.given["update_freq"]
        if len(values) != 1 or values[0] < 1 or values[0] != int(values[0]):
            shown = ",".join(map(str, values))
            self._refuse(f"--update-freq {shown}: give one whole number, for all epochs")
            return 1
        return int(values[0])

    def _ends(self) -> dict[str, Any]:
        given = self.given
        section: dict[str, Any] = {"max_updates": given["max_update"] or _ENDLESS}
        if given["max_epoch"]:
            section["max_epochs"] = given["max_epoch"]
        elif not given["max_update"] and not given["stop_time_hours"]:
            self._note("nothing ends the run: set train.max_updates, max_epochs or patience")
        if given["stop_time_hours"]:
            section["max_hours"] = given["stop_time_hours"]
        if given["patience"] > 0:
            section["patience"] = given["patience"]
        return section

    def _intervals(self) -> dict[str, Any]:
        given = self.given
        every: int | None = given["validate_interval_updates"] or None
        save = given["save_interval_updates"] or None
        if given["disable_validation"]:
            return {"validate_every": None, "save_every": save or _VALIDATE_EVERY}
        if every is None:
            every = min(save or _VALIDATE_EVERY, given["max_update"] or _VALIDATE_EVERY)
            self._note(
                f"train.validate_every {every}: fairseq validates at the end of each epoch; "
                "validations are counted in updates here"
            )
        return {"validate_every": every} | ({} if save is None else {"save_every": save})

    def _kept(self) -> dict[str, int]:
        given = self.given
        limits = [given["keep_interval_updates"]] if given["save_interval_updates"] else []
        limits += [] if given["no_epoch_checkpoints"] else [given["keep_last_epochs"]]
        if any(limit < 1 for limit in limits):
            self._note(
                "train.keep_last: fairseq keeps all checkpoints unless --keep-last-epochs and "
                "--keep-interval-updates limit them; lower it if disk space matters"
            )
            last = _ALL
        else:
            last = max(limits, default=1)
        return {"keep_last": last, "keep_best": max(1, given["keep_best_checkpoints"])}

    def validation_section(self, has_text: bool) -> dict[str, Any]:
        """Return the section `validation`; `has_text` says whether there is a raw reference."""
        given = self.given
        best = given["best_checkpoint_metric"]
        measures = bool(given["eval_bleu"])
        if best not in (*_LOSSES, "bleu"):
            self._refuse(f"--best-checkpoint-metric {best}: there are bleu, {', '.join(_LOSSES)}")
        if best == "nll_loss" and given["label_smoothing"]:
            self._note("--best-checkpoint-metric nll_loss: the loss here is label-smoothed")
        if best == "bleu" and not measures:
            self._refuse("--best-checkpoint-metric bleu: needs --eval-bleu")
        if measures and not has_text:
            self._note(
                "--eval-bleu: BLEU needs the raw validation text; set data.raw.valid and "
                "validation.metrics=[bleu], validation.best=bleu"
            )
        if not measures or not has_text:
            return {"metrics": [], "best": "loss"}
        return {"metrics": ["bleu"], "best": "bleu" if best == "bleu" else "loss"}

    def generation_section(self) -> dict[str, Any]:
        """Return the section `generation`, with fairseq's defaults where ours differ."""
        options = self.given["eval_bleu_args"]
        values = {name: _SEARCH[name][1] for name in _WRITTEN}
        for name, value in options.items():
            if name in _SEARCH:
                is_off = value == _OFF and name != "min_len"
                values[name] = _SEARCH[name][1] if is_off else value
            elif name not in _NO_SEARCH or value != _NO_SEARCH[name]:
                self._refuse(
                    f"--eval-bleu-args {name}: not supported; there are {', '.join(_SEARCH)}"
                )
        return {_SEARCH[name][0]: value for name, value in values.items()}

    def deepspeed(self) -> dict[str, Any]:
        """Return the DeepSpeed JSON."""
        zero = self._zero()
        if self.precision != "fp16":
            return {"zero_optimization": zero}
        given = self.given
        window = given["fp16_scale_window"]
        if window is None:  # counted in updates, which are the fewer the larger a batch is
            window = max(1, _SCALE_WINDOW // (self.num_processes * self._accumulate()))
        return {
            "fp16": {
                "loss_scale": 0,
                "initial_scale_power": max(0, round(math.log2(max(1, given["fp16_init_scale"])))),
                "loss_scale_window": int(window),
                "hysteresis": 1,
                "min_loss_scale": max(1, int(given["threshold_loss_scale"] or 1)),
            },
            "zero_optimization": zero,
        }

    def _zero(self) -> dict[str, Any]:
        given = self.given
        backend, sharding = given["ddp_backend"], given["zero_sharding"]
        if backend not in (*_REPLICATED, _SHARDED):
            self._refuse(
                f"--ddp-backend {backend}: not supported; there are {', '.join(_REPLICATED)} and "
                f"{_SHARDED}"
            )
        if sharding not in ("none", "os"):
            self._refuse(f"--zero-sharding {sharding}: there are none and os")
        # half precision with a whole copy of the state on each rank costs memory for nothing
        stage = 1 if sharding == "os" or self.precision != "fp32" else 0
        if backend == _SHARDED:
            stage = 2 if given["no_reshard_after_forward"] else 3
        offloads = given["cpu_offload"] or given["optimizer"] == "cpu_adam"
        if not offloads:
            return {"stage": stage}
        return {"stage": max(1, stage), "offload_optimizer": {"device": "cpu"}}
