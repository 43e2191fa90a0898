"""Which teacher layers correspond to a student's layers: the tables, and the general rule."""

from __future__ import annotations

import pytest

from ds_seq.models.layer_maps import copy_map, even_map, supervise_map

COPIED = {
    (6, 1): [0],
    (6, 2): [0, 5],
    (6, 3): [0, 2, 5],
    (6, 4): [0, 1, 3, 5],
    (12, 1): [0],
    (12, 2): [0, 6],
    (12, 3): [0, 6, 11],
    (12, 4): [0, 4, 8, 11],
    (12, 6): [0, 2, 4, 7, 9, 11],
    (12, 9): [0, 1, 2, 4, 5, 7, 9, 10, 11],
    (16, 1): [0],
    (16, 2): [0, 15],
    (16, 3): [0, 8, 15],
    (16, 4): [0, 5, 10, 15],
    (16, 6): [0, 3, 6, 9, 12, 15],
    (16, 8): [0, 2, 4, 6, 8, 10, 12, 15],
    (16, 9): [0, 1, 3, 5, 7, 9, 11, 13, 15],
    (16, 12): [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15],
}
SUPERVISED = {
    (6, 1): [5],
    (6, 2): [3, 5],
    (6, 3): [1, 4, 5],
    (6, 4): [1, 2, 4, 5],
    (12, 1): [11],
    (12, 2): [5, 11],
    (12, 3): [3, 7, 11],
    (12, 6): [1, 3, 5, 8, 10, 11],
    (16, 1): [15],
    (16, 4): [4, 9, 12, 15],
    (16, 8): [1, 3, 5, 7, 9, 11, 13, 15],
}
ALL = [copy_map, supervise_map, even_map]
DEPTHS = [(teacher, student) for teacher in range(1, 25) for student in range(1, teacher + 1)]


@pytest.mark.parametrize(("depths", "layers"), COPIED.items())
def test_the_table_of_copied_layers(depths, layers):
    assert copy_map(*depths) == layers


@pytest.mark.parametrize(("depths", "layers"), SUPERVISED.items())
def test_the_table_of_supervising_layers(depths, layers):
    assert supervise_map(*depths) == layers


@pytest.mark.parametrize(
    ("make", "depths", "layers"),
    [
        (copy_map, (5, 3), [0, 2, 4]),
        (copy_map, (12, 5), [0, 3, 6, 8, 11]),
        (copy_map, (24, 4), [0, 8, 15, 23]),
        (even_map, (6, 3), [0, 3, 5]),
        (even_map, (12, 4), [0, 4, 7, 11]),
        (even_map, (7, 1), [0]),
        (supervise_map, (8, 4), [1, 3, 5, 7]),
        (supervise_map, (10, 4), [1, 4, 6, 9]),
        (supervise_map, (7, 1), [6]),
    ],
)
def test_other_depths_follow_the_rule(make, depths, layers):
    assert make(*depths) == layers


@pytest.mark.parametrize("make", ALL)
def test_every_map_names_different_layers_in_order(make):
    for teacher, student in DEPTHS:
        layers = make(teacher, student)
        assert len(layers) == student
        assert layers == sorted(set(layers)) and 0 <= layers[0] and layers[-1] < teacher


def test_the_ends_are_kept():
    for teacher, student in DEPTHS:
        assert copy_map(teacher, student)[0] == even_map(teacher, student)[0] == 0
        assert supervise_map(teacher, student)[-1] == teacher - 1
        if student > 1:
            assert even_map(teacher, student)[-1] == teacher - 1
            if (teacher, student) != (12, 2):  # the table's one exception
                assert copy_map(teacher, student)[-1] == teacher - 1


@pytest.mark.parametrize("make", ALL)
def test_as_deep_as_the_teacher_is_all_and_no_layers_are_none(make):
    assert make(6, 6) == make(9, 9)[:6] == list(range(6))
    assert make(6, 0) == []


@pytest.mark.parametrize("make", ALL)
def test_a_deeper_student_has_no_map(make):
    with pytest.raises(ValueError, match="student of 7 layers is deeper than its teacher of 6"):
        make(6, 7)


@pytest.mark.parametrize(("make", "depths"), [(copy_map, (6, 3)), (supervise_map, (12, 6))])
def test_an_answer_is_the_askers_own(make, depths):
    before = make(*depths)
    make(*depths).clear()
    assert make(*depths) == before
