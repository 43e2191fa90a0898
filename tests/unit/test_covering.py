"""Tests of the rows that cover all pairs."""

from __future__ import annotations

from itertools import combinations

from tests.covering import all_pairs, covering_rows

AXES = {"size": ["s", "m", "l"], "color": ["red", "blue"], "shape": ["round", "square", "flat"]}
REFUSED = {frozenset(("s", "red")), frozenset(("blue", "flat"))}


def test_rows_have_all_pairs_but_the_refused_ones():
    rows = covering_rows(AXES, REFUSED)
    met = {frozenset(pair) for row in rows for pair in combinations(row, 2)}
    assert met == {frozenset(pair) for pair in all_pairs(AXES)} - REFUSED
    assert len(rows) < len(met) / 2


def test_a_row_has_at_most_one_value_of_an_axis():
    for row in covering_rows(AXES, REFUSED):
        assert all(len(set(row) & set(values)) <= 1 for values in AXES.values())
