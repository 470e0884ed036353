"""A comparison: what is run, what is not run again, what is chosen by which rows, and what is said.

The runs are stand-ins that write what runs write, but for the last test.
"""

import csv
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sinkd_llm.cli import main
from sinkd_llm.cli.compare import _parse
from sinkd_llm.errors import InputError
from sinkd_llm.report.comparison import GOLD, MAJORITY, TEACHER, TFIDF, comparison_table, sentences
from sinkd_llm.report.predictions import TEACHER as OF_TEACHER
from sinkd_llm.report.predictions import Predictions, read_predictions, write_predictions
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.comparing.compare import run_compare
from sinkd_llm.runs.comparing.processes import Command, run_commands, start_process
from sinkd_llm.runs.comparing.scores import Compared, EvaluationScores, HeldOutScores, choose
from sinkd_llm.runs.data import load_run_data
from tests.support.launch import Ended
from tests.support.models import decoder, save, word_tokenizer
from tests.support.stand_in_runs import Runs, rows_of

NO_TEACHER = {"model_name_or_path": "some-model", "teacher_model_name_or_path": None, "student_layers": None}
BEST_STEP = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
VARIANTS = {"kl": {"learning_rate": 1e-4}, "strong": {"learning_rate": 1e-3}}
TWO = {"variants": VARIANTS, "seeds": [0, 1, 2]}


def test_every_cell_is_run_with_every_seed_and_compared(compare, tmp_path):
    runs = Runs()
    found = compare(TWO, runs)
    assert [entry[0] for entry in runs.started] == ["cache", *["distill"] * 6]
    assert all("teacher_cache:" in text for text in runs.trained)
    row = found.row("strong")
    assert row.against.supported
    assert row.against.low > 0.1
    assert row.mean == pytest.approx(np.mean(list(row.scores.values())))
    assert found.row("kl").against is None
    assert found.best == "strong"
    said = "\n".join(sentences(found))
    assert "strong is better than kl by 0.2" in said
    out = tmp_path / "out"
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert table[0]["cell"] == "kl"
    assert float(table[3]["acc"]) == found.row("strong").scores[0]
    assert float(table[0]["held_out_acc"]) == found.runs[0].held_out["acc"]
    assert json.loads((out / "results.json").read_text())["rows"][1]["against"]["p_holm"] < 0.05
    page = (out / "comparison.html").read_text()
    assert "strong is better than kl" in page
    assert "<svg" in page
    assert not re.findall(r"<script [^>]*src|<link|<img|src=|@import", page)  # nothing from elsewhere
    assert not list(out.rglob("model.safetensors"))


def test_models_stay_where_that_is_asked(compare, tmp_path):
    compare(TWO, Runs(), keep_models=True, seeds=[0])
    assert len(list((tmp_path / "out").rglob("model.safetensors"))) == 2


def test_a_finished_comparison_runs_nothing_again(compare):
    compare(TWO, Runs())
    again = Runs()
    found = compare(TWO, again)
    assert again.started == []
    assert found.row("strong").against.supported


def test_a_stopped_comparison_goes_on(compare):
    runs = Runs()
    runs.stops_after = 4
    with pytest.raises(KeyboardInterrupt):
        compare(TWO, runs)
    runs.stops_after = None
    compare(TWO, runs)
    assert len(runs.trained) == 6
    assert len({*runs.trained}) == 6


def test_more_seeds_add_their_runs_alone(compare):
    runs = Runs()
    compare(TWO, runs)
    compare({**TWO, "seeds": [0, 1, 2, 3]}, runs)
    assert len(runs.trained) == 8


@pytest.mark.parametrize("what", ["recipe", "data", "teacher"])
def test_what_has_changed_is_run_again_and_said(what, compare, capsys, recipe, tmp_path, teacher):
    compare(TWO, Runs(), seeds=[0])
    capsys.readouterr()
    changes = {}
    if what == "recipe":
        changes, named = {"weight_decay": 0.1}, "weight_decay"
    elif what == "data":
        file, named = tmp_path / "task" / "train.jsonl", "train.jsonl"
        file.write_text(file.read_text() + json.dumps({"text": "another good film", "label": 1}) + "\n")
    else:
        save(tmp_path / "other", decoder(layers=3, seed=1), word_tokenizer())
        changes, named = {"teacher_model_name_or_path": str(tmp_path / "other")}, "the weights of"
    runs = Runs()
    compare(TWO, runs, changes, seeds=[0])
    assert len(runs.trained) == 2
    assert named in capsys.readouterr().err
    if what != "data":  # what was found before is still there
        back = Runs()
        compare(TWO, back, seeds=[0])
        assert back.trained == []


def balanced(tmp_path, recipe):
    """Of a teacher file, with a prior of the two answers."""
    (tmp_path / "answers.jsonl").write_text('{"split": "train", "row": 0, "probabilities": [0.5, 0.5]}\n')
    (tmp_path / "prior.yaml").write_text("positive: 0.4\nnegative: 0.6\n")
    return {
        "teacher_file": str(tmp_path / "answers.jsonl"),
        "teacher_model_name_or_path": None,
        "model_name_or_path": recipe["teacher_model_name_or_path"],
    }


def test_another_prior_is_another_run(compare, recipe, tmp_path, capsys):
    changes = balanced(tmp_path, recipe)
    grid = {"variants": {"kl": {}, "prior": {"balance": str(tmp_path / "prior.yaml")}}, "seeds": [0]}
    compare(grid, Runs(), changes)
    capsys.readouterr()
    (tmp_path / "prior.yaml").write_text("positive: 0.3\nnegative: 0.7\n")
    runs = Runs()
    compare(grid, runs, changes)
    assert [entry[0] for entry in runs.started] == ["cache", "distill"]
    assert re.search(r"prior, seed 0 is run again: \S*prior\.yaml has\s+changed", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("prior", "said"), [("unifrom", "unifrom.*neither uniform"), ("prior.yaml", "fine"), ("gone.yaml", "neither")]
)
def test_a_prior_that_does_not_fit_is_refused_before_anything_runs(prior, said, compare, recipe, tmp_path):
    changes = balanced(tmp_path, recipe)
    (tmp_path / "prior.yaml").write_text("positive: 0.3\nfine: 0.7\n")
    given = str(tmp_path / prior) if prior.endswith(".yaml") else prior
    runs = Runs()
    with pytest.raises(InputError, match=rf"(?s)prior: .*{said}"):
        compare({"variants": {"kl": {}, "prior": {"balance": given}}, "seeds": [0]}, runs, changes)
    assert runs.started == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"student_layers": 4}, "Cannot take 4 layers from a model that has 3"),
        ({"student_layers": 5, "layer_selection": "influence"}, "Cannot take 5 layers from a model that has 3"),
        ({"student_layers": 2, "layer_selection": "0,7"}, "index 7 of the layers to keep is none of this model's"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused_before_anything_runs(settings, said, compare, tmp_path):
    runs = Runs()
    with pytest.raises(InputError, match=f"deep: .*{said}"):
        compare({"variants": {"kl": {}, "deep": settings}, "seeds": [0]}, runs)
    assert not runs.started
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["model_name_or_path", "teacher_model_name_or_path"])
def test_a_model_that_is_not_there_is_refused_before_anything_runs(setting, compare, tmp_path):
    runs = Runs()
    other = {setting: "./start/of-no-one"}
    with pytest.raises(InputError, match=r"other: There is no folder or file '\./start/of-no-one'"):
        compare({"variants": {"kl": {}, "other": other}, "seeds": [0]}, runs)
    assert not runs.started
    assert not (tmp_path / "out").exists()


def test_answers_that_could_not_be_kept_are_said_with_the_cells_that_need_them(compare, capsys):
    class NoAnswers(Runs):
        def __call__(self, command, environment):
            if command.argv[0] == "cache":
                command.log.write_text("sinkd: error: the server is gone\n")
                return Ended(2)
            return super().__call__(command, environment)

    with pytest.raises(InputError, match="the server is gone"):
        compare(TWO, NoAnswers())
    said = " ".join(capsys.readouterr().err.split())
    assert "could not be kept, and 6 runs need them, of kl, strong: sinkd: error: the server is gone" in said


def test_progress_shows_what_is_compared(compare, capsys):
    class Two(Runs):
        def answers(self, rows, skill, seed):
            one = super().answers(rows, skill, seed)
            return dataclasses.replace(one, metrics={**one.metrics, "acc_norm": 0.25})

    compare({**TWO, "metric": "acc_norm", "seeds": [0]}, Two())
    assert "kl, seed 0: acc_norm 0.250" in capsys.readouterr().err


@pytest.mark.parametrize(("fails", "code"), [({}, 0), ({"learning_rate: 0.001": "no\n"}, 1)])
def test_the_exit_code_says_whether_all_runs_have_a_result(fails, code, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(TWO))
    runs = Runs()
    runs.fails = fails
    monkeypatch.setattr("sinkd_llm.runs.comparing.compare.run_compare", lambda request: run_compare(request, runs))
    assert main(["compare", "--config", "mine.yaml", "--grid", "grid.yaml"]) == code


def test_a_run_that_fails_is_said_and_tried_again(compare, capsys):
    runs = Runs()
    runs.fails = {"learning_rate: 0.001\nheldout_share: 0.1\nseed: 1": "line one\nsinkd: error: the disk is full\n"}
    found = compare(TWO, runs)
    assert [entry.problem for entry in found.failed] == ["line one\nsinkd: error: the disk is full"]
    assert "failed (exit code 2): sinkd: error: the disk is full" in capsys.readouterr().err
    assert found.row("strong").against.seeds == 2  # pairs of the seeds that both have
    assert any("1 run of 6 failed, of strong" in sentence for sentence in sentences(found))
    runs.fails = {}
    runs.started.clear()
    assert not compare(TWO, runs).failed
    assert len(runs.trained) == 1


def test_without_a_run_of_the_baseline_there_is_nothing_to_compare(compare):
    runs = Runs()
    runs.fails = {"learning_rate: 0.0001": "sinkd: error: no\n"}
    with pytest.raises(InputError, match=r"no run of the baseline 'kl' has a result.*sinkd: error: no"):
        compare(TWO, runs)


def test_settings_are_chosen_on_held_out_rows_and_not_on_the_rows_for_evaluation(compare):
    grid = {"variants": {"x": {}}, "grid": {"learning_rate": [1e-4, 1e-2]}, "seeds": [0, 1, 2], "heldout_share": 0.3}
    found = compare(grid, Runs())
    # `lucky` has 0.97 on the rows for evaluation, and 0.60 on held-out rows.
    assert found.row("x").cell == "x, learning_rate=0.0001"
    assert found.row("x").chosen_from == 2
    assert any("learning_rate=0.0001 is the best of 2" in sentence for sentence in sentences(found))


def test_nothing_is_held_out_where_nothing_is_chosen(compare):
    runs = Runs()
    compare({"variants": VARIANTS, "seeds": [0], "select_on": "none"}, runs)
    assert all(yaml.safe_load(text)["heldout_share"] == 0.0 for text in runs.trained)


def test_an_interval_stays_within_what_scores_can_differ_by():
    def scores(*values):
        answers = {seed: Predictions(["a"], ["x"], ["x"], {"em": value}) for seed, value in enumerate(values)}
        return EvaluationScores({seed: one.metrics["em"] for seed, one in answers.items()}, answers)

    found = Compared("em", {"a": scores(0.9, 0.1), "b": scores(0.1, 0.8)}).difference("a", "b")
    assert (found.low, found.high, found.examples) == (-1, 1, 0)
    assert found.p > 0.05


def test_two_seeds_that_differ_alike_support_nothing():
    """Scores of 100 rows lie on a grid of 0.01. Of a loss, or of questions that rows make up, no grid is known."""

    def scores(metric, *values):
        rows = [str(row) for row in range(100)]
        answers = {seed: Predictions(rows, rows, rows, {metric: value}) for seed, value in enumerate(values)}
        return EvaluationScores({seed: one.metrics[metric] for seed, one in answers.items()}, answers)

    for metric, p in (("acc_norm", pytest.approx(0.18, abs=0.005)), ("em", None), ("perplexity", None)):
        both = {"a": scores(metric, 0.82, 0.81), "b": scores(metric, 0.81, 0.80)}
        found = Compared(metric, both).difference("a", "b")
        assert (found.p, found.p_seeds) == (p, p)


def test_cells_that_were_scored_on_other_rows_are_not_compared():
    answers = [Predictions(["a"], [label], [0], {"acc": 1.0}) for label in (0, 1)]
    with pytest.raises(InputError, match="scored on different rows"):
        Compared("acc", {str(one): EvaluationScores({0: 1.0}, {0: one}) for one in answers})


def test_what_chooses_takes_no_scores_of_the_rows_for_evaluation():
    assert choose({"a": HeldOutScores({0: 0.1}), "b": HeldOutScores({0: 0.2})}, "acc") == "b"
    assert choose({"a": HeldOutScores({0: 0.1}), "b": HeldOutScores({0: 0.2})}, "perplexity") == "a"
    with pytest.raises(TypeError, match="EvaluationScores"):
        choose({"a": EvaluationScores({0: 0.1}, {})}, "acc")


def test_baselines_and_whether_to_distil(compare):
    found = compare(TWO, Runs(), baselines=True)
    assert {row.kind for row in found.rows} == {"student", GOLD, MAJORITY, TFIDF, TEACHER}
    assert found.row(TFIDF).mean == 1.0  # the words good and bad say all
    assert found.row(MAJORITY).mean == 0.5
    assert found.row(GOLD).mean == pytest.approx(0.6, abs=0.02)
    assert found.row(TEACHER).mean == 0.9
    assert found.row(TEACHER).sd is None
    said = sentences(found)
    assert any(f"Do not distil here: {TFIDF}, which needs no teacher" in sentence for sentence in said)
    assert not any(GOLD in sentence and "Do not distil" in sentence for sentence in said)
    assert any("no identity control" in sentence for sentence in said)


def test_teachers_that_score_differently_are_rows_without_baselines_too(compare, recipe, tmp_path):
    class Balanced(Runs):
        def write(self, folder, settings):
            super().write(folder, settings)
            if settings.get("balance"):
                rows = rows_of(settings["task"], settings["heldout_share"]).evaluation
                write_predictions(folder, {**read_predictions(folder), OF_TEACHER: self.answers(rows, 0.95, 0)})

    uniform = {"learning_rate": 1e-4, "balance": "uniform"}
    grid = {**TWO, "variants": {**VARIANTS, "balanced": uniform, "half": {**uniform, "balance_strength": 0.5}}}
    found = compare(grid, Balanced(), balanced(tmp_path, recipe))
    teachers = {row.name: row.mean for row in found.rows if row.kind == TEACHER}
    assert teachers == {"teacher": pytest.approx(0.9), "teacher of balanced": pytest.approx(0.95)}
    assert found.row("teacher of balanced").against.estimate == pytest.approx(0.25, abs=0.01)
    assert not [row for row in compare(TWO, Runs()).rows if row.kind == TEACHER]  # one teacher is no comparison


def test_gold_labels_only_have_as_many_updates_where_labels_are_few(compare):
    runs = Runs()
    changes = {"labels_per_class": 3, "max_steps": -1, "num_train_epochs": 2}
    compare({**TWO, "seeds": [0]}, runs, changes, baselines=True)
    gold = yaml.safe_load(next(text for text in runs.trained if "labelled_rows_only" in text))
    assert gold["labelled_rows_only"] is True
    rows = len(load_run_data(TaskArguments(task=gold["task"], heldout_share=0.1), 0).train)
    assert gold["max_steps"] == -(-rows // 8) * 2


def test_sinkd_has_an_identity_control(compare):
    runs = Runs()
    changes = {"sinkhorn_weight": 0.8, "signal": "choices"}
    found = compare({**TWO, "seeds": [0, 1]}, runs, changes, baselines=True)
    assert {row.name for row in found.rows if row.kind == "identity control"} == {
        *("identity control of kl", "identity control of strong"),
    }
    assert sum("transport_scope: sequence" in text for text in runs.trained) == 4


def test_a_control_whose_plan_is_not_the_identity_is_none(compare):
    class Moving(Runs):
        def write(self, folder, settings):
            super().write(folder, settings)
            (folder / "metrics.jsonl").write_text('{"step": 1, "sinkhorn/diagonal_mass": 0.4}\n')

    found = compare({**TWO, "seeds": [0, 1]}, Moving(), {"sinkhorn_weight": 0.8}, baselines=True)
    assert not [row for row in found.rows if row.kind == "identity control"]
    assert any("There is no identity control of kl" in sentence for sentence in sentences(found))


def test_cells_share_the_teachers_answers_where_they_can(compare):
    runs = Runs()
    grid = {"variants": {**VARIANTS, "short": {"learning_rate": 1e-3, "max_length": 32}}, "seeds": [0]}
    compare(grid, runs)
    caches = {yaml.safe_load(text)["teacher_cache"] for text in runs.trained}
    assert [entry[0] for entry in runs.started].count("cache") == len(caches) == 2
    drawn = Runs()
    compare({"variants": VARIANTS, "seeds": [0, 1]}, drawn, {"max_train_samples": 100})
    assert len({yaml.safe_load(text)["teacher_cache"] for text in drawn.trained}) == 2  # of other rows each
    alone = Runs()
    compare({**TWO, "seeds": [5], "teacher_cache": "none"}, alone, {"profile": True})
    assert not any("teacher_cache" in text for text in alone.trained)
    said = [yaml.safe_load(text) for text in alone.trained]
    wanted = [(one["score_before"], one["profile"], one["keep_probabilities"]) for one in said]
    assert {*wanted} == {(False, True, False)}  # what a comparison does not need, unless its recipe asks for it
    states = Runs()  # which no cache has
    compare({"variants": {**VARIANTS, "states": {"queue_weight": 1.0, "max_steps": 2}}, "seeds": [6]}, states)
    assert ["teacher_cache" in text for text in states.trained if "queue_weight" in text] == [False]
    assert any("teacher_cache" in text for text in states.trained)


def test_a_recipe_without_a_teacher_compares_fine_tuning(compare, recipe, capsys):
    runs = Runs()
    changes = {"model_name_or_path": recipe["teacher_model_name_or_path"], "teacher_model_name_or_path": None}
    found = compare({"grid": {"learning_rate": [1e-4, 1e-3]}, "seeds": [0, 1]}, runs, changes, baselines=True)
    assert [entry[0] for entry in runs.started] == ["finetune"] * 4
    assert "the runs fine-tune on the labels" in capsys.readouterr().err
    assert GOLD not in [row.name for row in found.rows]  # all of them are this already
    assert found.best == "learning_rate=0.001"


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ({"grid": {"alphas": [1]}}, {}, "unknown key 'alphas'. Did you mean 'alpha'"),
        ({"grid": {"alpha": [3]}}, {}, "alpha is 3"),
        ({"grid": {"divergence": ["kl", "k"]}}, {}, "divergence"),
        ({"grid": {"alpha": [0.5]}, "metric": "f1"}, {}, "metric is 'f1', which the task does not have"),
        ({"grid": {"alpha": [0.5]}}, {"task": None, "dataset_name": "rows.jsonl"}, "recipe has a dataset_name"),
        ({"grid": {"alpha": [0.5]}}, BEST_STEP, "a comparison scores the last step"),
        (
            {"grid": {"alpha": [0.5]}},
            NO_TEACHER,
            "varies alpha, which is of what",
        ),
        ({"grid": {"learning_rate": [1e-4]}}, {"teacher_model_name_or_path": None}, "--model_name_or_path is missing"),
    ],
)
def test_what_is_refused_before_anything_is_written(compare, tmp_path, grid, changes, message):
    runs = Runs()
    with pytest.raises(InputError, match=message) as raised:
        compare(grid, runs, changes, parse=_parse("recipe.yaml", "grid.yaml"))
    assert "/recipe.yaml" not in str(raised.value)  # no file that the user does not know
    assert runs.started == []
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_taken(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"holds thesis\.txt"):
        compare(TWO, Runs())
    with pytest.raises(InputError, match="give 1 or more"):
        compare(TWO, Runs(), jobs=0)


def test_the_table_fits_a_terminal(compare):
    from rich.console import Console

    names = {
        f"a variant with quite a long name, number {i}": {"learning_rate": rate} for i, rate in ((0, 1e-4), (1, 1e-3))
    }
    found = compare({"variants": names, "seeds": [0, 1]}, Runs(), baselines=True)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(comparison_table(found))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "baseline" in captured.get()
    assert "…" not in captured.get()


def test_what_is_interrupted_is_ended_and_waited_for(tmp_path):
    class Process:
        asked = False

        def poll(self):
            return 130 if self.asked else None

        def terminate(self):
            self.asked = True

    processes = [Process(), Process(), Ended(0)]
    left = iter(processes[::-1])
    commands = [Command(["distill"], tmp_path / f"{i}.log") for i in range(3)]
    ends = run_commands(commands, 3, lambda command, environment: next(left))
    assert next(ends).index == 0
    ends.close()
    assert [process.asked for process in processes[:2]] == [True, True]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config is missing"),
        (["--config", "{recipe}"], "--grid is missing"),
        (["--config", "{recipe}", "--grid", "absent.yaml"], "absent.yaml"),
        (["--config", "absent.yaml", "--grid", "{grid}"], "absent.yaml"),
        (["--config", "{recipe}", "--grid", "{grid}", "--seed", "1"], "it is --seeds here"),
        (["--config", "{recipe}", "--grid", "{grid}", "--jobs", "x"], "--jobs"),
        (["--config", "{recipe}", "--grid", "{grid}", "--dry_run"], "has no dry run"),
        (["--config", "dry.yaml", "--grid", "{grid}"], "dry.yaml: dry_run is set"),
        (["--config", "{recipe}", "--grid", "{grid}", "--baseline"], "Did you mean '--baselines'"),
        (["--config", "{recipe}", "--grid", "{grid}", "--alfa", "1"], "unknown flag --alfa"),
        (["--config", "{recipe}", "--grid", "{grid}", "--seeds"], "--seeds"),
    ],
)
def test_mistakes_on_the_command_line(argv, message, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "dry.yaml").write_text(yaml.safe_dump({**recipe, "dry_run": True}))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(TWO))
    assert main(["compare", *(word.format(recipe="mine.yaml", grid="grid.yaml") for word in argv)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_named_like_a_module_in_the_current_folder_breaks_no_run(tmp_path, monkeypatch):
    (tmp_path / "dis.py").write_text("raise RuntimeError('not the module that was meant')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", root)  # as an installed package is found
    monkeypatch.setattr("sys.path", [str(tmp_path / "bin"), *sys.path])  # as the console script has it
    process = start_process(Command(["--version"], tmp_path / "log"), dict(os.environ))
    assert process.wait() == 0, (tmp_path / "log").read_text()
