"""The teacher that a criterion's section describes."""

from __future__ import annotations

from dataclasses import replace

import torch

from ds_seq.config.criterion import DistillationConfig
from ds_seq.criterions import matched_layers
from ds_seq.distill.teacher import LiveTeacher, Loading, Student, load_teacher
from ds_seq.names import Capture


def build_teacher(
    config: DistillationConfig, vocab_hash: str, device: torch.device, student: Student | None
) -> LiveTeacher:
    """Load the live teachers of a distillation; a collective.

    Args:
        config: the section; it names teachers and no cache.
        vocab_hash: `Tokenizers.fingerprint` that all of them must have.
        device: of this rank.
        student: who learns from them, if anybody; which of their layers it imitates is in the
            section.

    Raises:
        UserError: see `load_teacher`.
    """
    hidden, attention = (
        None if section is None else matched_layers(section)
        for section in (config.hidden, config.attention)
    )
    capture: Capture = "none"
    if attention is not None:
        capture = "attention"
    elif hidden is not None:
        capture = "hidden"
    if student is not None:
        student = replace(student, hidden=hidden, attention=attention)
    loading = Loading(
        config.checkpoint,
        config.teacher_precision,
        config.teacher_expert_parallel,
        config.teacher_zero3,
    )
    return load_teacher(config.teachers, loading, vocab_hash, device, student, capture)
