"""What a checkpoint says of its run's teacher, and what is said where a run goes on with another one."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.teachers import CachedTeacher, LocalTeacher
from sinkd_llm.training.checkpoint_facts import differences, run_facts
from tests.support.caches import features, write
from tests.support.rows import opinions
from tests.support.trainers import changed_trainer


@pytest.fixture
def facts_of(tmp_path: Path, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Any:
    """The facts of one run with any teacher, as a checkpoint keeps them."""
    rows = {"train_dataset": opinions(), "processing_class": tiny_tokenizer}
    trainer = changed_trainer(tmp_path, {"model": tiny_causal_lm(seed=1), **rows}, {})

    def facts(teacher: Any) -> dict[str, Any]:
        trainer.forward.teacher = teacher
        found: dict[str, Any] = json.loads(json.dumps(run_facts(trainer)))
        return found

    return facts


def test_another_teacher_is_a_setting_that_differs(facts_of: Any, tiny_causal_lm: Any, tmp_path: Path) -> None:
    first, same, other = (facts_of(LocalTeacher(tiny_causal_lm(seed=seed), "large")) for seed in (2, 2, 3))
    renamed = facts_of(LocalTeacher(tiny_causal_lm(seed=2), "models/large"))
    assert differences(first, same) == differences(first, renamed) == ([], [])
    assert differences(first, other) == ([], ["the teacher: large has other weights than in the checkpoint"])
    assert differences(first, facts_of(None)) == ([], ["the teacher: large in the checkpoint, none now"])
    found = [write(tmp_path / name, features(count)) for name, count in (("a", 8), ("b", 8), ("c", 9))]
    assert len({len(one.shards) for one in found[:2]}) == 1
    cached, again, longer = (facts_of(CachedTeacher(tmp_path / name)) for name in "abc")
    assert differences(cached, again) == ([], [])
    assert differences(cached, longer) == (
        [],
        ["the teacher: a cache of teacher has other answers than in the checkpoint"],
    )
    assert differences(first, cached)[1] == ["the teacher: large in the checkpoint, a cache of teacher now"]


def test_teachers_whose_weights_cannot_be_compared_are_compared_by_name(facts_of: Any, tiny_causal_lm: Any) -> None:
    first = facts_of(LocalTeacher(tiny_causal_lm(seed=2), "large"))
    spread = {**first, "teacher": {**first["teacher"], "hash": None}}
    halved = facts_of(LocalTeacher(tiny_causal_lm(seed=2).bfloat16(), "large"))
    assert differences(spread, first) == differences(first, spread) == differences(first, halved) == ([], [])
    small = {**spread, "teacher": {**spread["teacher"], "name": "small"}}
    assert differences(first, small)[1] == ["the teacher: large in the checkpoint, small now"]


def test_a_checkpoint_of_an_earlier_version_does_not_say_its_teacher(facts_of: Any, tiny_causal_lm: Any) -> None:
    now = facts_of(LocalTeacher(tiny_causal_lm(seed=2), "large"))
    earlier = {name: value for name, value in now.items() if name != "teacher"}
    assert differences(earlier, now) == ([], [])
