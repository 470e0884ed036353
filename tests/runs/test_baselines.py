"""What `--baselines` adds: for teachers that know groups, by the rows of the baseline, and whatever the flags say."""

import pytest
import yaml

from sinkd_llm.report.comparison import CONTROL, GOLD, MAJORITY, TFIDF
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.comparing.baselines import (
    answers_without_model,
    control_cells,
    gold_cells,
    knows_groups,
    why_without_model,
)
from sinkd_llm.runs.comparing.grid import Cell
from sinkd_llm.runs.comparing.rows import CellRows
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.rehearsal import updates_of
from tests.support.stand_in_runs import ROWS, Runs, parsed
from tests.support.task_files import write_task

IN_GROUPS = {"transport_scope": "group", "group_column": "team"}
ALONE = {"alpha": 0.0, "divergence": "none", "signal": "choices"}
MOVED, SINKD = {"transported_weight": 10.0}, {"sinkhorn_weight": 10.0}


@pytest.fixture
def recipe(recipe, tmp_path):
    write_task(tmp_path / "task" / "mine.yaml", [{**row, "team": i // 4} for i, row in enumerate(ROWS)])
    return recipe


def trained(runs, kind):
    """The settings of the runs whose folder begins so."""
    folders = [words[words.index("--output_dir") + 1] for words in runs.commands if words[0] != "cache"]
    texts = [yaml.safe_load(text) for text in runs.trained]
    return [settings for folder, settings in zip(folders, texts, strict=True) if f"/{kind}" in folder]


def test_sinkd_in_groups_has_a_control_of_each_row_by_itself(compare):
    runs, grid = Runs(), {"variants": {"transported": MOVED, "SinKD": SINKD}, "seeds": [0]}
    found = compare(grid, runs, {**ALONE, **IN_GROUPS}, baselines=True)
    assert {f"{CONTROL} of transported", f"{CONTROL} of SinKD", GOLD} <= {row.name for row in found.rows}
    (control,) = trained(runs, "identity-control-of-sinkd")
    assert (control["transport_scope"], control["group_column"]) == ("sequence", None)
    (control,) = trained(runs, "identity-control-of-transported")
    assert (control["transport_scope"], control["group_column"]) == ("group", "team")
    assert control["transported_coupling"] == "identity"
    assert [words[0] for words in runs.commands].count("cache") == 1  # a model reads each row by itself


def test_gold_labels_of_a_variant_with_groups_have_none(compare):
    runs = Runs()
    variants = {"transported": {**MOVED, **IN_GROUPS}, "KL": {"alpha": 0.9, "divergence": "kl"}}
    compare({"variants": variants, "seeds": [0]}, runs, ALONE, baselines=True)
    (gold,) = trained(runs, "gold")
    assert (gold["transport_scope"], gold["group_column"], gold["transported_weight"]) == ("batch", None, 0.0)


def test_gold_labels_beside_a_teacher_of_groups_are_learnt_without_it(compare, recipe, tmp_path):
    counts = tmp_path / "counts.csv"
    counts.write_text("team,negative,positive\n" + "".join(f"{team},2,2\n" for team in range(30)))
    runs, student = Runs(), recipe["teacher_model_name_or_path"]
    changes = {**ALONE, **IN_GROUPS, "teacher_model_name_or_path": None, "model_name_or_path": student}
    changes |= {"teacher_file": str(counts), "balance": "uniform", "balance_strength": 0.5, "unlabelled_ratio": 0.5}
    grid = {"variants": {"transported": MOVED, "strong": {"transported_weight": 20.0}}, "seeds": [0]}
    flags = ["--teacher_file", str(counts), "--max_steps=3"]
    found = compare(grid, runs, changes, baselines=True, flags=flags)
    assert not found.failed
    (gold,) = trained(runs, "gold")
    words = next(words for words in runs.commands if words[0] == "finetune")
    assert (gold["teacher_file"], gold["balance"], gold["balance_strength"]) == (None, None, 1.0)
    assert (gold["labelled_rows_only"], gold["unlabelled_ratio"]) == (True, None)  # and no groups beside which
    assert "--teacher_file" not in words
    assert "--max_steps=3" in words
    assert GOLD in [row.name for row in found.rows]
    assert not [row for row in found.rows if row.kind == CONTROL]
    assert [note for note in found.notes if "identity control of strong" in note and "known per group" in note]


@pytest.mark.parametrize(("rows_per_request", "known"), [(4, True), (1, False)])
def test_a_server_that_is_asked_for_lists_knows_groups(rows_per_request, known, recipe):
    student = {"model_name_or_path": recipe["teacher_model_name_or_path"], "teacher_model_name_or_path": None}
    server = {"teacher_url": "http://localhost:1/v1", "teacher_rows_per_request": rows_per_request}
    moved = {**ALONE, **MOVED, "transport_scope": "group" if known else "batch"}
    arguments = parsed({**recipe, **student, **server, **moved})
    assert knows_groups(arguments) == known
    cells = [(Cell("moved", moved), arguments)]
    controls, notes = control_cells(cells)
    assert (len(controls), len(notes)) == ((0, 1) if known else (1, 0))
    (gold,) = gold_cells(cells, CellRows({"moved": arguments}).of, 0)
    assert ("teacher_url" in gold.settings) == known


def test_flags_of_all_runs_leave_a_baseline_what_it_is(compare):
    runs, flags = Runs(), ["--sinkhorn_weight", "0.8", "--weight-decay", "0.1"]

    def parse(settings, flags):
        given = {} if "--sinkhorn_weight" not in flags else {"sinkhorn_weight": 0.8}
        return parsed({**settings, **given})

    grid = {"variants": {"slow": {"learning_rate": 1e-4}, "fast": {"learning_rate": 1e-3}}, "seeds": [0]}
    compare(grid, runs, {"signal": "choices"}, baselines=True, flags=flags, parse=parse)
    for words in runs.commands:
        gold = "gold-labels" in words[words.index("--config") + 1]
        assert ("--sinkhorn_weight" in words, "--weight-decay" in words) == (not gold, True), words


@pytest.mark.parametrize("order", [("few", "all"), ("all", "few")])
def test_what_words_alone_score_follows_from_the_labels_of_the_baseline(order, compare, recipe, tmp_path):
    rows = [{"text": f"a film {i} " + ("good" if i % 2 else "bad") * (i % 6 > 1), "label": i % 2} for i in range(120)]
    write_task(tmp_path / "task" / "mine.yaml", rows)
    variants = {"few": {"labels_per_class": 1}, "all": {}}
    given = {"variants": {name: variants[name] for name in order}, "baseline": "all", "seeds": [0]}
    runs = Runs()
    found = compare(given, runs, {"signal": "choices"}, baselines=True)
    data = load_run_data(TaskArguments(task=recipe["task"], heldout_share=0.1), 0)
    assert found.row(TFIDF).mean == answers_without_model(data)[TFIDF].metrics["acc"]
    (gold,) = trained(runs, "gold")
    assert "labelled_rows_only" not in gold
    runs = Runs()
    compare({**given, "baseline": "few"}, runs, {"signal": "choices"}, baselines=True)
    (gold,) = trained(runs, "gold")
    assert gold["labelled_rows_only"]


def test_gold_labels_have_the_updates_of_the_rows_that_a_batch_mixes(compare, recipe):
    runs = Runs()
    changes = {"labels_per_class": 3, "max_steps": -1, "num_train_epochs": 2, "unlabelled_ratio": 0.5}
    compare({"variants": {"a": {}, "b": {"alpha": 0.5}}, "seeds": [0]}, runs, changes, baselines=True)
    task_args, training_args, _ = parsed({**recipe, **changes, "heldout_share": 0.1})
    expected, _ = updates_of(load_run_data(task_args, 0), training_args, 1)
    (gold,) = trained(runs, "gold")
    assert gold["max_steps"] == expected > 2 * 107 / 8 + 1  # labelled rows come more than once


def test_gold_labels_have_the_updates_of_the_groups_that_batches_hold(compare, recipe):
    runs = Runs()
    changes = {**ALONE, "max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 6}
    variants = {"transported": {**MOVED, **IN_GROUPS}, "KL": {"alpha": 0.9, "divergence": "kl"}}
    compare({"variants": variants, "seeds": [0]}, runs, changes, baselines=True)
    (gold,) = trained(runs, "gold")
    assert gold["max_steps"] > 120 * 0.9 / 6 + 5  # a group of four leaves two rows of a batch free


def test_baselines_that_there_are_not_are_said(tmp_path):
    written = write_task(
        tmp_path / "written" / "mine.yaml",
        [{"text": "two and two", "label": "four"}] * 4,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{label}}",
        metric_list=[{"metric": "rouge_l"}],
    )
    data = load_run_data(TaskArguments(task=str(written)), 0)
    (said,) = why_without_model(data, answers_without_model(data))
    assert MAJORITY in said
    assert TFIDF in said
    assert "the answers are written" in said
    alike = write_task(tmp_path / "alike" / "mine.yaml", [{"text": "a film", "label": 1}] * 4)
    data = load_run_data(TaskArguments(task=str(alike)), 0)
    (said,) = why_without_model(data, found := answers_without_model(data))
    assert [*found] == [MAJORITY]
    assert "of one class" in said
