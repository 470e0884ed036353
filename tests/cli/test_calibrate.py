"""`sinkd calibrate` and `sinkd route` on a made-up student: what they store, show and refuse."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from sinkd_llm.answering import torch_student
from sinkd_llm.answering.calibration import NONE, Calibration, Vector, cross_fitted
from sinkd_llm.answering.facts import HeldOut, StudentFacts, kept_keys
from sinkd_llm.answering.routing import Route
from sinkd_llm.cli import main
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.locks import folder_lock
from sinkd_llm.runs import TaskArguments, routing
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.held_out import hold_out
from sinkd_llm.runs.task_rows import training_rows
from sinkd_llm.runs.unseen_rows import Unseen, unseen_rows, write_facts
from sinkd_llm.tasks import load_task
from sinkd_llm.training.config import SinKDConfig
from tests.support import models
from tests.support.task_files import write_task

SHARE = 0.5
TEACHER = "teacher_model_name_or_path"


@dataclass
class _Record:
    """Of the record of a run, what a route looks at."""

    all_settings: dict[str, str]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of which the student says how likely each choice is, and labels that it is too sure of."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        logit = float(random.normal(0, 2.5))
        label = int(random.random() < 1 / (1 + np.exp(-logit)))
        made.append({"text": f"film {seed}-{index} {3 * logit:.3f}", "label": label, "teacher": int(logit > 0)})
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student, beside its task and the task's rows."""
    folder = tmp_path_factory.mktemp("made")
    write_task(folder / "mine.yaml", metadata={"texts": ["text"]})
    for name, count, seed in (("train", 1200, 0), ("validation", 400, 1), ("other", 500, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(count, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    models.save(folder / "student", models.encoder_or_encoder_decoder("bert"), models.marked_tokenizer("bert"))
    return folder


@pytest.fixture
def student(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def says(self: Any, examples: Any) -> list[list[float]]:
        logits = [float(example.text.split()[-1]) for example in examples]
        return [[-float(np.logaddexp(0, x)), -float(np.logaddexp(0, -x))] for x in logits]

    monkeypatch.setattr(torch_student.TorchStudent, "log_probabilities", says)
    facts = StudentFacts(kept_keys(load_task(made / "mine.yaml")), Reading(64))
    replace(facts, held_out=HeldOut(SHARE, None, False, None, 0)).write(made / "student")
    return made / "student"


def kept(student: Path) -> StudentFacts:
    facts = StudentFacts.load(student)
    assert facts is not None
    return facts


def test_held_out_rows_make_probabilities_right(student: Path, made: Path, capsys) -> None:
    argv = ["calibrate", str(student), "--task", str(made / "mine.yaml")]
    assert main(argv) == 0
    said = capsys.readouterr()
    calibration = kept(student).calibration
    assert calibration is not None
    assert calibration.temperature == pytest.approx(3, rel=0.25)
    held_out = len(hold_out(load_task(made / "mine.yaml").load("train"), SHARE)[1])
    assert f"{held_out} held-out training rows" in said.out
    measured = calibration.measured
    assert measured["rows"] == held_out
    for name in ("log_loss", "brier", "ece"):
        assert measured["after"][name] < measured["before"][name]
        assert f"{measured['after'][name]:.4f}" in said.out
    assert "is stored in" in said.err


def test_a_calibration_that_does_not_help_is_not_kept(student: Path, made: Path, monkeypatch, capsys) -> None:
    from sinkd_llm.runs import calibrating

    def useless(scores: Any, labels: Any, same_choices: bool) -> Any:
        assert same_choices
        return calibrating.NONE, calibrating.NONE.apply(scores)

    monkeypatch.setattr(calibrating, "fit_best", useless)
    before = kept(student)
    argv = ["calibrate", str(student), "--task", str(made / "mine.yaml")]
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert "nothing was stored" in said
    assert "stays as it is" not in said
    assert kept(student) == before
    replace(before, calibration=calibrating.Calibration(2.0)).write(student)
    assert main(argv) == 0
    assert "The calibration that the student has already stays as it is." in capsys.readouterr().err


def test_a_route_is_chosen_checked_and_used(student: Path, made: Path, capsys) -> None:
    task = ["--task", str(made / "mine.yaml")]
    assert main(["calibrate", str(student), *task]) == 0
    costs = ["--teacher_ms", "500", "--teacher_price", "2"]
    assert main(["route", str(student), *task, "--target", "0.9", *costs]) == 0
    said = capsys.readouterr().out
    route = kept(student).route
    assert route is not None
    assert (route.target, route.of) == (0.9, "accuracy")
    chosen, checked = route.measured["chosen"], route.measured["checked"]
    assert chosen["lower_bound"] >= 0.9
    assert checked["rows"] == 400
    assert checked["right"] / checked["answered"] > 0.87
    passed = 1 - checked["answered"] / 400
    for text in ("the guarantee", "its check", f"{1000 * passed:,.0f} are passed on", f"cost {passed * 2:,.4g}"):
        assert text in said
    output = made / "answers.jsonl"
    assert main(["predict", str(student), str(made / "other.jsonl"), "--output", str(output), "--overwrite"]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found) == 500
    for row in found:
        assert row["decision"] == ("answer" if row["probability"] >= route.threshold - 1e-6 else "ask")
    # Other probabilities need another route.
    assert main(["calibrate", str(student), *task]) == 0
    assert "run 'sinkd route' again" in capsys.readouterr().err
    assert kept(student).route is None


def test_agreement_with_a_file_of_answers(student: Path, made: Path, capsys) -> None:
    answers = made / "teacher.jsonl"
    every = [json.loads(line) for name in ("train", "validation") for line in (made / f"{name}.jsonl").open()]
    answers.write_text("".join(json.dumps({"text": r["text"], "answer": r["teacher"]}) + "\n" for r in every))
    argv = ["route", str(student), "--task", str(made / "mine.yaml"), "--teacher_file", str(answers)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    route = kept(student).route
    assert route is not None
    assert route.of == "agreement"
    assert route.measured["checked"]["right"] == route.measured["checked"]["answered"] > 390
    assert "as the teacher" in said
    assert "not calibrated" in said
    answers.write_text("".join(json.dumps({"text": r["text"], "answer": r["teacher"]}) + "\n" for r in every[:1200]))
    assert main(argv) == 0
    assert "nothing checks the threshold" in capsys.readouterr().out


def test_positions_of_training_rows_say_nothing_of_other_rows(student: Path, made: Path, capsys) -> None:
    """The first answer of a file without splits is the first training row's, and not the first validation row's."""
    answers = made / "by_row.csv"
    lines = [f"{index},{('negative', 'positive')[row['teacher']]}" for index, row in enumerate(rows(1200, 0))]
    answers.write_text("\n".join(["row,answer", *lines]) + "\n")
    argv = [
        "route",
        str(student),
        "--task",
        str(made / "mine.yaml"),
        "--teacher_file",
        str(answers),
        "--target",
        "0.9",
    ]
    assert main(argv) == 0
    assert "nothing checks the threshold" in capsys.readouterr().out
    route = kept(student).route
    assert route is not None
    assert route.measured["checked"] is None


def test_positions_are_none_of_rows_that_do_not_say_theirs(student: Path, made: Path, tmp_path: Path, capsys) -> None:
    """Rows with ids of their own, of which a part was held out, and rows of another file."""
    for name, count, seed in (("train", 1200, 0), ("validation", 400, 1)):
        named = [{**row, "nr": f"{name[0]}{i}"} for i, row in enumerate(rows(count, seed))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    task = write_task(tmp_path / "named.yaml", metadata={"texts": ["text"]})
    answers = tmp_path / "by_row.csv"
    answers.write_text("row,answer\n" + "".join(f"{i},{('negative', 'positive')[i % 2]}\n" for i in range(1200)))
    argv = ["route", str(student), "--task", str(task), "--teacher_file", str(answers)]
    assert main([*argv, "--rows", str(made / "other.jsonl")]) == 2
    assert "the rows of --rows are others" in capsys.readouterr().err
    replace(kept(student), held_out=HeldOut(SHARE, None, False, "nr", 0)).write(student)
    assert main(argv) == 2
    assert "the ids of the rows do not say it" in capsys.readouterr().err
    answers.write_text("nr,answer\n" + "".join(f"t{i},{row['teacher']}\n" for i, row in enumerate(rows(1200, 0))))
    assert main(argv) == 0


@pytest.fixture
def by_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales and shifts are kept, also where a temperature would be no worse."""

    def vector(scores: Any, labels: Any, **_: Any) -> Any:
        fit = Calibration.fit_vector
        return fit(scores, labels), cross_fitted(fit, scores, labels)

    monkeypatch.setattr("sinkd_llm.runs.calibrating.fit_best", vector)


def held_out_lines(made: Path) -> list[str]:
    held_out = set(hold_out(load_task(made / "mine.yaml").load("train"), SHARE)[1]["text"][:])
    return [json.dumps(row) + "\n" for row in rows(1200, 0) if row["text"] in held_out]


@pytest.mark.usefixtures("by_vector")
def test_scales_and_shifts_of_the_same_rows_give_no_guarantee(student: Path, made: Path, capsys) -> None:
    task = ["--task", str(made / "mine.yaml")]
    route = ["route", str(student), *task, "--target", "0.9"]
    assert main(["calibrate", str(student), *task]) == 0
    assert main(route) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the level is about right, and not guaranteed" in said
    assert "the guarantee" not in said
    crossed = kept(student).route
    assert crossed is not None
    lines = held_out_lines(made)
    assert crossed.measured["crossed"] == len(lines)
    # The same rows in a file are the same rows, also among others; others are not.
    (made / "again.jsonl").write_text("".join(lines[::-1]))
    others = (made / "other.jsonl").read_text()
    (made / "more.jsonl").write_text("".join(lines) + others.splitlines()[0] + "\n")
    (made / "one.jsonl").write_text(others + lines[0])
    for name, shared in (("again", len(lines)), ("more", len(lines)), ("one", 1), ("other", 0)):
        assert main([*route, "--rows", str(made / f"{name}.jsonl")]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("the guarantee" in said) == (not shared)
        assert ("were fitted on at least" in said) == (name in ("more", "one"))
        found = kept(student).route
        assert found is not None
        assert found.measured["crossed"] == shared
    # By the scales and shifts themselves it would be another route.
    found = kept(student)
    assert found.calibration is not None
    replace(found, calibration=replace(found.calibration, measured={})).write(student)
    assert main(route) == 0
    inside = kept(student).route
    assert inside is not None
    assert not inside.measured["crossed"]
    assert inside.measured["chosen"] != crossed.measured["chosen"]


@pytest.mark.usefixtures("by_vector")
def test_scales_and_shifts_are_fitted_again_on_all_rows(student: Path, made: Path, capsys) -> None:
    """Also on those of which it is not known what the teacher chooses: their labels are."""
    task = ["--task", str(made / "mine.yaml")]
    assert main(["calibrate", str(student), *task]) == 0
    lines = held_out_lines(made)
    sure = [row for row in map(json.loads, lines) if abs(float(row["text"].split()[-1])) > 3][:9]
    answers = made / "few.jsonl"
    answers.write_text("".join(json.dumps({"text": row["text"], "answer": row["teacher"]}) + "\n" for row in sure))
    argv = ["route", str(student), *task, "--teacher_file", str(answers), "--target", "0.7"]
    assert main(argv) == 0
    assert "the estimate" in capsys.readouterr().out
    route = kept(student).route
    assert route is not None
    assert (route.measured["crossed"], route.measured["chosen"]["right"]) == (9, 9)
    # Nothing can be fitted on these alone.
    (made / "few_rows.jsonl").write_text("".join(lines[:9]))
    argv = ["route", str(student), *task, "--rows", str(made / "few_rows.jsonl"), "--of", "accuracy"]
    assert main([*argv, "--target", "0.1"]) == 2
    assert "Give rows that it was not calibrated on" in " ".join(capsys.readouterr().err.split())


def test_rows_are_known_again_by_a_bounded_text(monkeypatch: pytest.MonkeyPatch) -> None:
    every, others = (
        Unseen(datasets.Dataset.from_dict({"prompt": [f"{name} {i}" for i in range(300)]}), None, None, "rows")
        for name in "ab"
    )
    assert every.known(every.prints_to_keep()) == [*range(300)]
    assert others.known(every.prints_to_keep()) == []
    monkeypatch.setattr("sinkd_llm.runs.unseen_rows._MOST_PRINTS", 100)
    assert len(every.prints_to_keep()) == 800
    assert len(every.known(every.prints_to_keep())) == 100


def test_scales_and_shifts_of_places_in_lists_are_dropped(student: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Of an earlier version, which fitted them to rows that have as many choices, and not the same."""
    own = [{**row, "a": f"no {i % 3}", "b": f"yes {i % 3}"} for i, row in enumerate(rows(300, 7))]
    task = write_task(tmp_path / "own.yaml", own, doc_to_choice="{{[a, b]}}", metadata={"texts": ["text"]})
    stored = StudentFacts(kept_keys(load_task(task)), Reading(64), held_out=HeldOut(SHARE, None, False, None, 0))
    vector = Calibration(1.0, Vector((1.0, 1.0), (0.0, 1.0)))
    replace(stored, calibration=vector, route=Route(0.5, 0.9, "accuracy")).write(student)
    monkeypatch.setattr(
        "sinkd_llm.runs.calibrating.fit_best", lambda scores, *_, same_choices: (NONE, NONE.apply(scores))
    )
    (tmp_path / "validation.jsonl").write_text(json.dumps({**own[0], "text": "another 1"}) + "\n")
    assert main(["calibrate", str(student), "--task", str(task)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "They are dropped from" in said
    assert "So is the route" in said
    assert "stays as it is" not in said
    assert (kept(student).calibration, kept(student).route) == (None, None)


def test_rows_of_a_validation_share_are_not_fitted_on(made: Path, tmp_path: Path) -> None:
    task = load_task(
        write_task(tmp_path / "one.yaml", rows(600, 3), validation_split=None, metadata={"texts": ["text"]})
    )
    arguments = TaskArguments(task=str(task.path), heldout_share=0.5, validation_share=0.3)
    trained = training_rows(task, arguments, 0)
    facts = StudentFacts(kept_keys(task), Reading(64), held_out=HeldOut(0.5, None, False, None, 0, 0.3))
    unseen = unseen_rows(task, facts, None, None, "a student")
    assert unseen.evaluation is not None
    parts = [set(part["text"][:]) for part in (trained, unseen.rows, unseen.evaluation)]
    assert set.union(*parts) == {row["text"] for row in rows(600, 3)}
    assert sum(map(len, parts)) == 600
    assert all(parts)
    without = replace(facts, held_out=HeldOut(0.0, None, False, None, 0, 0.3))
    with pytest.raises(InputError, match="No training rows were held out"):
        unseen_rows(task, without, None, None, "a student")


def test_agreement_with_a_model(student: Path, made: Path) -> None:
    argv = ["route", str(student), "--task", str(made / "mine.yaml"), "--teacher_model_name_or_path", str(student)]
    assert main(argv) == 0
    route = kept(student).route
    assert route is not None
    assert route.measured["chosen"]["answered"] == route.measured["chosen"]["rows"]


def test_rows_of_a_file(student: Path, made: Path, capsys) -> None:
    replace(kept(student), held_out=None).write(student)
    argv = ["calibrate", str(student), "--task", str(made / "mine.yaml")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "it has seen them all" in said
    assert "--heldout_share" in said
    assert main([*argv, "--rows", str(made / "validation.jsonl")]) == 2
    assert "400 of the 400 rows for evaluation also stand in" in capsys.readouterr().err
    assert main([*argv, "--rows", str(made / "train.jsonl")]) == 2
    assert "1,200 of the 1,200 rows of" in capsys.readouterr().err
    assert main([*argv, "--rows", str(made / "other.jsonl")]) == 0
    calibration = kept(student).calibration
    assert calibration is not None
    assert calibration.measured["rows"] == 500


def test_rows_of_a_file_that_were_held_out(student: Path, made: Path, capsys) -> None:
    held_out = set(hold_out(load_task(made / "mine.yaml").load("train"), SHARE)[1]["text"][:])
    lines = [json.dumps(row) for row in rows(1200, 0) if row["text"] in held_out]
    (made / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    argv = ["calibrate", str(student), "--task", str(made / "mine.yaml"), "--rows", str(made / "held_out.jsonl")]
    assert main(argv) == 0
    seen = next(json.dumps(row) for row in rows(1200, 0) if row["text"] not in held_out)
    (made / "held_out.jsonl").write_text("\n".join([*lines, seen]) + "\n")
    assert main(argv) == 2
    assert "1 of the" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["split", "file"])
def test_rows_that_were_trained_on_without_labels_have_been_seen(
    made: Path, tmp_path: Path, capsys, kind: str
) -> None:
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    task = load_task(
        write_task(
            tmp_path / "three.yaml",
            dataset_kwargs={"data_files": files},
            test_split="test",
            metadata={"texts": ["text"]},
        )
    )
    for index, file in enumerate(files.values()):
        lines = [json.dumps(row) + "\n" for row in rows(60, 10 + index)]
        (tmp_path / file).write_text("".join(lines))
    given = {"split": {"dataset_unlabelled_split": "test"}, "file": {"unlabelled_file": str(tmp_path / "test.jsonl")}}
    arguments = TaskArguments(task=str(task.path), **given[kind])
    args = SinKDConfig(str(tmp_path / "run"), use_cpu=True, max_length=64)
    write_facts(tmp_path, load_run_data(arguments, args.sample_seed), args)
    facts = kept(tmp_path)
    assert str(tmp_path) not in (tmp_path / "sinkd_answers.json").read_text()
    with pytest.raises(InputError, match=r"60 of the 60 rows of .* are training rows without labels of 'mine'"):
        unseen_rows(task, facts, str(tmp_path / "test.jsonl"), None, "a student")
    with pytest.raises(InputError, match=r"60 of the 60 rows of .* are training rows of 'mine'"):
        unseen_rows(task, facts, str(tmp_path / "train.jsonl"), None, "a student")
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60, 20)))
    assert len(unseen_rows(task, facts, str(tmp_path / "new.jsonl"), None, "a student").rows) == 60
    if kind == "file":
        (tmp_path / "test.jsonl").rename(tmp_path / "elsewhere.jsonl")
        unseen_rows(task, facts, str(tmp_path / "elsewhere.jsonl"), None, "a student")
        assert "cannot be checked whether rows of" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["task/raw", "start/raw", "elsewhere"])
def test_the_file_of_rows_without_labels_is_found_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, place: str
) -> None:
    """And no other file of its name, below the working folder or beside the task, is checked in its place."""
    task = load_task(write_task(tmp_path / "task" / "mine.yaml", rows(60, 10), metadata={"texts": ["text"]}))
    (tmp_path / "task" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(9, 11)))
    for number, folder in enumerate(("start/raw", "task/raw", "elsewhere", "start", "task")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        seed = 20 if folder == place else 30 + number
        (tmp_path / folder / "u.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60, seed)))
    monkeypatch.chdir(tmp_path / "start")
    arguments = TaskArguments(
        task=str(task.path), unlabelled_file=str(tmp_path / place / "u.jsonl"), max_unlabelled_samples=60
    )
    args = SinKDConfig(str(tmp_path / "run"), use_cpu=True, max_length=64)
    write_facts(tmp_path, load_run_data(arguments, args.sample_seed), args)
    assert str(tmp_path) not in (tmp_path / "sinkd_answers.json").read_text()
    capsys.readouterr()
    given = (task, kept(tmp_path), str(tmp_path / place / "u.jsonl"), None, "a student")
    if place == "elsewhere":
        assert len(unseen_rows(*given).rows) == 60
        assert "where the file u.jsonl of these lies is not known" in " ".join(capsys.readouterr().err.split())
    else:
        with pytest.raises(InputError, match=r"60 of the 60 rows of .* are training rows without labels"):
            unseen_rows(*given)


def test_rows_that_are_all_right_say_nothing_of_how_sure_a_student_should_be(
    student: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "easy.jsonl").write_text(
        "".join(json.dumps({"text": f"easy {i} {(-1) ** i * 9}", "label": 1 - i % 2}) + "\n" for i in range(40))
    )
    before = kept(student)
    argv = ["calibrate", str(student), "--task", str(made / "mine.yaml"), "--rows", str(made / "easy.jsonl")]
    assert main(argv) == 0
    assert "right answer in 40 of 40 rows" in capsys.readouterr().err
    assert kept(student) == before


def test_the_teacher_of_a_run_is_found_from_elsewhere(
    student: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run names its teacher from where it was started; accuracy never takes the place of agreement unasked."""
    argv = ["route", str(student), "--task", str(made / "mine.yaml")]
    record = student / "results.json"
    for named, found in (("student", True), ("nowhere", False)):
        monkeypatch.setattr(routing.RunRecord, "read", lambda _, name=named: _Record({TEACHER: name}))
        record.write_text("{}")
        monkeypatch.chdir(made.parent)
        assert main(argv) == (0 if found else 2)
        route = kept(student).route
        assert route is not None
        assert route.of == "agreement"
    assert "(nowhere, of which it learned, is not there)" in capsys.readouterr().err
    record.unlink()
    assert main(argv) == 2
    assert "--of accuracy" in capsys.readouterr().err
    assert main([*argv, "--of", "accuracy", "--target", "0.9"]) == 0
    assert main([*argv, "--target", "0.9"]) == 0
    assert "No teacher of the student is known" in capsys.readouterr().err


def test_a_bundled_teacher_of_a_run_is_taken(
    student: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it read another prompt there, and would choose otherwise over these rows."""
    load, asked = routing.load_student, []

    def loaded(name: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(name))
        return load(student, *args, **kwargs)

    monkeypatch.setattr(routing, "load_student", loaded)
    record = student / "results.json"
    record.write_text("{}")
    argv = ["route", str(student), "--task", str(made / "mine.yaml")]
    monkeypatch.setattr(routing.RunRecord, "read", lambda _: _Record({TEACHER: "smollm2-135m"}))
    assert main(argv) == 0
    assert asked[-1] == "smollm2-135m"
    longer = _Record({TEACHER: "smollm2-135m", "teacher_task": "long.yaml"})
    monkeypatch.setattr(routing.RunRecord, "read", lambda _: longer)
    assert main(argv) == 2
    record.unlink()
    said = " ".join(capsys.readouterr().err.split())
    assert "(smollm2-135m, of which it learned, read another prompt there: teacher_task)" in said


def test_a_check_below_the_target_is_said_to_be(student: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The guarantee is for rows like those that the threshold was chosen on."""
    answers = made / "surer.jsonl"
    every = [json.loads(line) for name in ("train", "validation") for line in (made / f"{name}.jsonl").open()]
    said = [{"text": row["text"], "answer": row["teacher"]} for row in every[:1200]]
    said += [
        {"text": row["text"], "answer": (row["teacher"] + (i % 5 == 0)) % 2} for i, row in enumerate(every[1200:])
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in said))
    argv = ["route", str(student), "--task", str(made / "mine.yaml"), "--teacher_file", str(answers)]
    assert main(argv) == 0
    found = kept(student).route
    assert found is not None
    checked = found.measured["checked"]
    share = checked["right"] / checked["answered"]
    assert share == pytest.approx(0.8, abs=0.01)
    assert f"The check is below the target: {share:.2%} of the answers" in " ".join(capsys.readouterr().out.split())


def test_two_commands_do_not_write_to_one_student(student: Path, made: Path, capsys) -> None:
    with folder_lock(student, ""):
        for command in ("calibrate", "route"):
            assert main([command, str(student), "--task", str(made / "mine.yaml")]) == 2
            assert "Another process is writing to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "1"], "between 0 and 1"),
        (["--target", "nan"], "between 0 and 1"),
        (["--target", "0.9999"], "give more with --rows"),
        (["--target", "0.99"], "can be shown to give 99.0% right answers at a level of 95%"),
        (["--of", "agreement"], "not known what the teacher chooses"),
        (["--teacher_ms", "-1"], "0 or more"),
        (["--batch_size", "0"], "1 or more"),
        (["--teacher_file", "a.csv", "--teacher_model_name_or_path", "b"], "one teacher"),
        (["--rows", "nowhere.csv"], "no file"),
        (["--teach_file", "x"], "unknown flag"),
    ],
)
def test_what_cannot_be_routed(student: Path, made: Path, flags: list[str], message: str, capsys) -> None:
    before = kept(student)
    assert main(["route", str(student), "--task", str(made / "mine.yaml"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert kept(student) == before


def test_a_folder_that_does_not_say_where_its_data_are(student: Path, tmp_path: Path, capsys) -> None:
    assert main(["calibrate", str(student)]) == 2
    assert "does not say where the data of its task lie" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
