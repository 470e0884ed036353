"""Which tasks a user names together."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.averages import BENCHMARKS, average_of, glue_score, tasks_of
from sinkd_llm.tasks import load_task
from sinkd_llm.tasks.registry import expand_tasks


def test_names_are_parted_by_commas_and_come_once():
    assert expand_tasks("rte, boolq,rte") == ["rte", "boolq"]
    assert expand_tasks("rte") == ["rte"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_stands_for_its_tasks(name):
    names = expand_tasks(f"{name},rte")
    assert names[: len(tasks_of(name))] == tasks_of(name)
    assert "rte" in names
    assert all(load_task(task).name == task for task in names)


def test_a_folder_stands_for_its_task_files(tmp_path):
    for file in ("b.yaml", "a.yml", "_shared.yaml", "rows.csv"):
        (tmp_path / file).write_text("")
    assert expand_tasks(f"{tmp_path},sst2") == [str(tmp_path / "a.yml"), str(tmp_path / "b.yaml"), "sst2"]
    (tmp_path / "one, two.yaml").write_text("")
    assert expand_tasks(str(tmp_path / "one, two.yaml")) == [str(tmp_path / "one, two.yaml")]


def test_what_names_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="hold an empty name"):
        expand_tasks("rte,,boolq")
    with pytest.raises(InputError, match="has no task file"):
        expand_tasks(str(tmp_path))


def test_an_average_says_over_how_many_tasks_it_is():
    scores = {task: {metric: 0.5 for _, metric in parts} for task, parts in BENCHMARKS["glue"][1].items()}
    scores["mnli_mismatched"] = {"acc": 0.7}
    assert average_of("glue", scores) == ("GLUE", pytest.approx(glue_score(scores)))
    del scores["mnli_mismatched"], scores["rte"]
    assert average_of("glue", scores) == ("GLUE, 7 of 9 tasks", pytest.approx(0.5))
    assert average_of("superglue", scores) is None
