"""What a run's record says in words."""

from typing import Any

import pytest

from sinkd_llm.runs.record import how_answered
from tests.support import models


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.decoder(layers=1), "answers ranked by summed log-likelihood"),
        (lambda: models.encoder_or_encoder_decoder("bert", layers=1), "the class of the highest probability"),
        (lambda: models.encoder_or_encoder_decoder("bert", layers=1, num_labels=1), "nearest to the predicted number"),
    ],
)
def test_how_answers_are_chosen(make: Any, said: str) -> None:
    assert said in how_answered(make())
