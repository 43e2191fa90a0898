"""Which teacher layers correspond to the layers of a shallower student.

There are tables for tested depths (Shleifer and Rush, 2020, arXiv:2010.13002) and a rule for all
others. Every function takes two depths and returns the index of a teacher layer for each student
layer, counted from 0 and ascending. For equal depths, these are all layers.
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
    """Return the teacher layers to copy to a student; depths not in the table use `even_map`.

    Args:
        teacher: depth of the teacher.
        student: depth of the student.

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    return _listed(_COPIED, teacher, student) or even_map(teacher, student)


def supervise_map(teacher: int, student: int) -> list[int]:
    """Return the teacher layers that a student's layers imitate; the last imitates the last.

    For depths not in the table, the teacher is divided into parts of equal depth, and each student
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
    """Return evenly spaced teacher layers, from the first to the last; a single one is the first.

    Args:
        teacher: depth of the teacher.
        student: depth of the student.

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    _check(teacher, student)
    gaps = max(student - 1, 1)
    # round to the nearest integer, halves up
    return [(2 * layer * (teacher - 1) + gaps) // (2 * gaps) for layer in range(student)]


def is_tabled(teacher: int, student: int) -> bool:
    """Return whether `copy_map` has a tested choice for these depths."""
    return teacher == student or bool(_listed(_COPIED, teacher, student))


def _listed(table: _Table, teacher: int, student: int) -> list[int]:
    """Return a copy of the table's entry, or an empty list."""
    return list(table.get(teacher, {}).get(student, []))


def _check(teacher: int, student: int) -> None:
    if student > teacher:
        raise ValueError(
            f"a student of {student} layers is deeper than its teacher of {teacher}, so its layers "
            "have no counterparts; list the teacher layers explicitly"
        )


LAYER_MAPS: dict[str, LayerMap] = {
    "supervise": supervise_map,
    "copy": copy_map,
    "even": even_map,
}
"""Layer maps by their name in an experiment file."""
