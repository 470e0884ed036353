"""Scores of each class, from the definitions."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.classes import class_scores


def test_scores_are_their_definitions():
    meant = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    said = [0, 1, 0, 1, 2, 2, 2, 0, 2]
    found = class_scores(said, meant, 4)
    assert found.confusion == [[2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 3, 0], [0, 0, 0, 0]]
    assert found.support == [3, 2, 4, 0]
    assert found.precision == pytest.approx([2 / 3, 1 / 2, 3 / 4, 0])
    assert found.recall == pytest.approx([2 / 3, 1 / 2, 3 / 4, 0])
    assert found.f1 == pytest.approx([2 / 3, 1 / 2, 3 / 4, 0])


@pytest.mark.parametrize(
    ("said", "meant", "message"),
    [
        ([], [], "0 predictions"),
        ([0], [0, 1], "1 predictions for 2"),
        ([2], [0], "choice 2 is none of 2"),
        ([0], [-1], "-1"),
    ],
)
def test_what_is_no_class_is_refused(said, meant, message):
    with pytest.raises(InputError, match=message):
        class_scores(said, meant, 2)
