"""What a comparison refuses before anything runs, beside what its grid's file says (`test_compare_grid.py`)."""

import pytest

from sinkd_llm.cli.compare import _parse
from sinkd_llm.errors import InputError
from sinkd_llm.report.predictions import Predictions
from sinkd_llm.runs.comparing.grid import Cell
from sinkd_llm.runs.comparing.scores import Compared, EvaluationScores
from sinkd_llm.teachers.cache.layout import CacheLayout
from tests.support.caches import features, write
from tests.support.stand_in_runs import ROWS, Runs
from tests.support.task_files import write_task


@pytest.fixture
def refused(compare, tmp_path):
    """Compares, and is refused with a message before anything is started or written."""

    def run(other, message, changes=None, **more):
        runs = Runs()
        grid = {"variants": {"kl": {}, "other": other}, "seeds": [0]}
        with pytest.raises(InputError, match=message):
            compare(grid, runs, changes, **more)
        assert runs.started == []
        assert not (tmp_path / "out").exists()

    return run


BY_EVALUATION = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "acc"}


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_goes_by_the_rows_for_evaluation(name, refused):
    refused({**BY_EVALUATION, "lr_scheduler_type": name}, rf"lr_scheduler_type is {name}.*rows on which cells are")


def test_balanced_answers_of_a_model_that_still_has_to_give_them(refused):
    refused({"balance": "uniform"}, r"other: balance is uniform.*sinkd cache --merge CACHE --balance uniform")


def test_balanced_answers_of_a_cache_that_is_not_balanced(refused, tmp_path):
    write(tmp_path / "cache", features(4), CacheLayout("choices", 2, 2, (), "float32"))
    refused({"balance": "uniform"}, "other: balance is sinkhorn uniform", {"teacher_cache": str(tmp_path / "cache")})


def test_a_task_without_the_metric(refused, tmp_path):
    by_f1 = write_task(tmp_path / "f1" / "mine.yaml", ROWS, metric_list=[{"metric": "f1"}])
    refused({"task": str(by_f1)}, "other: .*metric is 'acc', which the task does not have")


def test_other_rows_for_evaluation(refused, tmp_path):
    fewer = write_task(tmp_path / "fewer" / "mine.yaml", ROWS[:90])
    refused(
        {"task": str(fewer)}, r"'other' would be scored on other rows than 'kl' \(90 and 120\).*evaluation \(task\)"
    )
    turned = write_task(tmp_path / "turned" / "mine.yaml", [{**row, "label": 1 - row["label"]} for row in ROWS])
    refused({"task": str(turned)}, "other labels")
    named = [{**row, "nr": f"b{i}"} for i, row in enumerate(ROWS)]
    shared = write_task(tmp_path / "ids" / "mine.yaml", [{**row, "id": f"a{i}"} for i, row in enumerate(named)])
    refused({"id_column": "nr"}, "b0 in the place of a0", {"task": str(shared), "id_column": "id"})
    texts = {"version": 1, "texts": ["text"]}
    one = write_task(tmp_path / "one" / "mine.yaml", ROWS, metadata=texts)
    two = write_task(tmp_path / "two" / "mine.yaml", [{**row, "text": "a film"} for row in ROWS], metadata=texts)
    refused({"task": str(two)}, "other texts", {"task": str(one)})
    bare = write_task(
        tmp_path / "bare" / "mine.yaml",
        ROWS,
        validation_split=None,
        dataset_kwargs={"data_files": {"train": "train.jsonl"}},
    )
    refused({"task": str(bare)}, "other: The task 'mine' has no validation split")


def test_another_prompt_over_the_same_rows_is_compared(compare, tmp_path):
    other = write_task(tmp_path / "other" / "prompt.yaml", ROWS, task="prompt", doc_to_text="{{text}}. It was")
    named = write_task(tmp_path / "named" / "mine.yaml", [{**row, "nr": f"b{i}"} for i, row in enumerate(ROWS)])
    variants = {"a": {}, "b": {"task": str(other)}, "c": {"task": str(named), "id_column": "nr"}}
    for name, texts in (("d", ["text"]), ("e", ["{{text}}!"])):  # of which an encoder reads either
        task = write_task(tmp_path / name / "mine.yaml", ROWS, metadata={"version": 1, "texts": texts})
        variants[name] = {"task": str(task)}
    found = compare({"variants": variants, "seeds": [0]}, Runs())
    assert [row.name for row in found.rows] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("flag", ["--alpha=0.3", "--no_disable_dropout"])
def test_a_flag_of_what_the_cells_differ_in(flag, refused):
    other = {"alpha": 0.5, "disable_dropout": False}
    refused(
        other, rf"{flag.split('=')[0]} is given for all runs.*leave one of both out", flags=[flag, "--bf16", "false"]
    )


def test_the_flags_of_a_cell_are_those_that_it_does_not_overrule():
    flags = ["--alpha", "0.3", "--no-fp16", "--report_to", "none", "x", "--max_steps=-1"]
    assert Cell("a", {"alpha": 1, "fp16": True}).flags(flags) == ["--report_to", "none", "x", "--max_steps=-1"]
    assert Cell("a", {"report_to": "none"}).flags(flags) == [*flags[:3], "--max_steps=-1"]


def test_flags_are_parsed_with_the_settings_of_a_cell(recipe):
    parse = _parse("recipe.yaml", "grid.yaml")
    assert parse({**recipe, "alpha": 0.5}, ["--max_length", "32"])[1].max_length == 32
    with pytest.raises(InputError, match="alpha"):
        parse(recipe, ["--alpha", "2"])


@pytest.mark.parametrize(
    ("ids", "others", "same"),
    [
        (["d1", "d2"], ["e1", "e2"], False),
        (["d1", "d2"], ["d2", "d1"], False),
        (["a-validation-0-0123abcd", "a-validation-1-0123abcd"], ["b-validation-0-ffffffff"] * 2, False),
        (["a-validation-0-0123abcd", "a-validation-1-0123abcd"], ["d1", "d2"], True),
        (["a-validation-0-0123abcd"], ["b-validation-0-ffffffff"], True),
    ],
)
def test_rows_are_told_apart_by_their_ids(ids, others, same):
    answers = [Predictions(given, [0, 1][: len(given)], [0, 0][: len(given)], {"acc": 0.5}) for given in (ids, others)]
    scores = {str(i): EvaluationScores({0: 0.5}, {0: one}) for i, one in enumerate(answers)}
    if same:
        assert Compared("acc", scores).difference("0", "1").estimate == 0
    else:
        with pytest.raises(InputError, match=r"scored on different rows.* in the place of "):
            Compared("acc", scores)
