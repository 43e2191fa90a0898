"""Which layers of a deep stack stand for those of a shallow one.

Tables for depths that have been tried (Shleifer and Rush, 2020, arXiv:2010.13002), a rule for all
others. Every function takes two depths and returns, for each student layer, the index of a teacher
layer, from 0 and rising. As deep as the teacher: all its layers; without layers: none.
"""

from __future__ import annotations

from collections.abc import Callable

LayerMap = Callable[[int, int], list[int]]
_Table = dict[int, dict[int, list[int]]]  # teacher's depth -> student's depth -> teacher layers

_COPIED: _Table = {
    6: {1: [0], 2: [0, 5], 3: [0, 2, 5], 4: [0, 1, 3, 5]},
    12: {
        1: [0],
        2: [0, 6],
        3: [0, 6, 11],
        4: [0, 4, 8, 11],
        6: [0, 2, 4, 7, 9, 11],
        9: [0, 1, 2, 4, 5, 7, 9, 10, 11],
    },
    16: {
        1: [0],
        2: [0, 15],
        3: [0, 8, 15],
        4: [0, 5, 10, 15],
        6: [0, 3, 6, 9, 12, 15],
        8: [0, 2, 4, 6, 8, 10, 12, 15],
        9: [0, 1, 3, 5, 7, 9, 11, 13, 15],
        12: [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15],
    },
}
_SUPERVISING: _Table = {
    6: {2: [3, 5], 3: [1, 4, 5], 4: [1, 2, 4, 5]},
    12: {2: [5, 11], 3: [3, 7, 11], 6: [1, 3, 5, 8, 10, 11]},
    16: {4: [4, 9, 12, 15], 8: [1, 3, 5, 7, 9, 11, 13, 15]},
}


def copy_map(teacher: int, student: int) -> list[int]:
    """Teacher layers that a student is made of; other depths than in the table: `even_map`.

    Args:
        teacher: depth of the teacher.
        student: depth of the student.

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    return _listed(_COPIED, teacher, student) or even_map(teacher, student)


def supervise_map(teacher: int, student: int) -> list[int]:
    """Teacher layers that a student's layers imitate, the last one the last one.

    Other depths than in the table: the teacher is cut into parts of equal depth, and each student
    layer imitates the last layer of its part.

    Args:
        teacher: depth of the teacher.
        student: depth of the student.

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    _check(teacher, student)
    listed = _listed(_SUPERVISING, teacher, student)
    return listed or [(layer + 1) * teacher // student - 1 for layer in range(student)]


def even_map(teacher: int, student: int) -> list[int]:
    """Teacher layers evenly spaced from the first to the last; for a single one the first.

    Args:
        teacher: depth of the teacher.
        student: depth of the student.

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    _check(teacher, student)
    gaps = max(student - 1, 1)
    # to the nearest, in whole numbers: halves go up
    return [(2 * layer * (teacher - 1) + gaps) // (2 * gaps) for layer in range(student)]


def _listed(table: _Table, teacher: int, student: int) -> list[int]:
    """A copy of the entry, or nothing."""
    return list(table.get(teacher, {}).get(student, []))


def _check(teacher: int, student: int) -> None:
    if student > teacher:
        raise ValueError(
            f"a student of {student} layers is deeper than its teacher of {teacher}, so its layers "
            "have no counterparts; name the teacher layers one by one"
        )


LAYER_MAPS: dict[str, LayerMap] = {
    "supervise": supervise_map,
    "copy": copy_map,
    "even": even_map,
}
"""By the name that an experiment has for them."""
