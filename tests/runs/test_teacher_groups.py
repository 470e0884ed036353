"""Runs whose teacher's rows are known per group: from a file or a cache to a trained student."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkd_llm import load_task
from sinkd_llm.cli.parsing import parse_recipe, parse_training
from sinkd_llm.errors import InputError
from sinkd_llm.runs import run_distill
from sinkd_llm.runs.cache import run_cache
from sinkd_llm.teachers import CachedTeacher
from tests.support.language_server import language_server
from tests.support.models import encoder_or_encoder_decoder, marked_tokenizer, save
from tests.support.task_files import write_task

TRANSPORTED = {"alpha": 0, "divergence": "none", "sinkhorn_weight": 0, "transported_weight": 10}
GROUPED = {**TRANSPORTED, "transport_scope": "group", "group_column": "team"}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve rows of four teams of three, every second one positive; answers are kept in a folder of the test."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "kept"))
    words = ("bad", "good")
    for split, count in (("train", 12), ("validation", 4)):
        rows = [{"text": f"{words[i % 2]} film {i}", "label": i % 2, "team": i % 4 + 1} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_task(tmp_path / "opinions.yaml", metadata={"version": 1, "texts": ["text"]})


@pytest.fixture
def student(tmp_path: Path) -> str:
    return str(save(tmp_path / "encoder", encoder_or_encoder_decoder("bert", num_labels=2), marked_tokenizer("bert")))


def flags(task: Path, student: str, **more: Any) -> list[str]:
    settings = {
        **{"task": task, "model_name_or_path": student, "output_dir": task.parent / "out", "max_steps": 2},
        **{"per_device_train_batch_size": 8, "save_strategy": "no", "use_cpu": "true", "logging_steps": 1},
        "check_saved": "false",
        **more,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def distilled(task: Path, student: str, **more: Any) -> list[dict[str, Any]]:
    given = flags(task, student, overwrite_output_dir="true", **more)
    run_distill(*parse_training("distill", given), argv=given)
    lines = (task.parent / "out" / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "loss" in (record := json.loads(line))]


def cached(task: Path, student: str, output: str, *words: str, **more: Any) -> CachedTeacher:
    given = [*flags(task, student, **more), "--output", str(task.parent / output), *words]
    run_cache(*parse_recipe("cache", given)[:4], argv=given)
    return CachedTeacher(task.parent / output)


def test_counts_of_groups_teach_from_the_file_and_from_its_cache(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second team of three has four answers, and the fourth none.
    (tmp_path / "counts.csv").write_text("team,negative,positive\n1,3,0\n2,1,3\n3,3,0\n9,1,1\n")
    more: dict[str, Any] = {"teacher_file": tmp_path / "counts.csv", "labels_per_class": 2}
    records = distilled(task, student, **GROUPED, **more)
    said = capsys.readouterr()
    said_all = " ".join((said.out + said.err).split())
    assert "answers 9 of 12 rows, in 3 groups: groups are found by the column 'team'" in said_all
    assert "the counts of the columns 'negative', 'positive'" in said_all
    assert "because the file says nothing of their group: 3 ('4')" in said_all
    assert "of '2' 4 for 3" in said_all
    assert len(records) == 2
    assert all(np.isfinite(record["transported"]) for record in records)
    teacher = cached(task, student, "cache", teacher_file=tmp_path / "counts.csv", group_column="team")
    assert "its answers have the labels' shares but for 8.3% of the rows" in " ".join(capsys.readouterr().err.split())
    # The cache knows the groups.
    ungrouped: dict[str, Any] = {**GROUPED}
    del ungrouped["group_column"]
    again = distilled(task, student, teacher_cache=teacher.folder, labels_per_class=2, **ungrouped)
    assert [record["loss"] for record in again] == [record["loss"] for record in records]
    with pytest.raises(InputError, match="divergence is kl, which compares each row with a teacher row of its own"):
        distilled(task, student, teacher_cache=teacher.folder, **{**ungrouped, "alpha": 0.5, "divergence": "kl"})


def test_an_answer_of_the_group_is_not_held_against_a_rows_label(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{i},{('negative', 'positive')[1 - i % 2]}\n" for i in range(12))  # each the other one's
    (tmp_path / "rows.csv").write_text("row,answer\n" + lines)
    more: dict[str, Any] = {"teacher_file": tmp_path / "rows.csv", "labels_per_class": 2}
    distilled(task, student, **GROUPED, **more)
    assert "The teacher on 12 rows that it teaches: not scored, mean" in " ".join(capsys.readouterr().err.split())
    distilled(task, student, **{**GROUPED, "transported_anchor": 0.3}, **more)
    assert "The teacher on 12 rows that it teaches: score 0.000" in " ".join(capsys.readouterr().err.split())


def test_distributions_of_groups_are_balanced_with_their_counts(task: Path, student: str, tmp_path: Path) -> None:
    said = [("1", 0.9, 2), ("1", 0.6, 1), ("2", 0.8, 1), ("2", 0.3, 4), ("3", 0.7, 3), ("4", 0.95, 3)]
    lines = [json.dumps({"group": g, "probabilities": [p, 1 - p], "count": n}) for g, p, n in said]
    (tmp_path / "groups.jsonl").write_text("\n".join(lines) + "\n")
    raw = cached(task, student, "raw", teacher_file=tmp_path / "groups.jsonl", group_column="team")
    even = cached(task, student, "even", "--merge", str(raw.folder), balance="uniform")
    names = load_task(task).load("train")["id"][:]
    before, after = raw.sets(names), even.sets(names)
    assert [one.names for one in before] == [one.names for one in after]

    def mean(sets: Any) -> Any:
        shares = [one.mass_M @ (np.exp(one.scores_MC) / np.exp(one.scores_MC).sum(axis=1)[:, None]) for one in sets]
        return sum(shares) / 12

    expected = (3 * (0.9 * 2 + 0.6) / 3 + 3 * (0.8 + 0.3 * 4) / 5 + 3 * 0.7 + 3 * 0.95) / 12
    assert mean(before)[0] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(mean(after), 0.5, atol=1e-5)
    # One weight a class for all rows.
    moved = np.concatenate([b.scores_MC - a.scores_MC for a, b in zip(before, after, strict=True)])
    np.testing.assert_allclose(moved - moved[0], 0, atol=1e-5)
    straight = cached(
        task, student, "straight", teacher_file=tmp_path / "groups.jsonl", group_column="team", balance="uniform"
    )
    for one, other in zip(straight.sets(names), after, strict=True):
        np.testing.assert_allclose(one.scores_MC, other.scores_MC, atol=1e-5)
    with pytest.raises(InputError, match="what is known of groups of rows"):
        cached(task, student, "both", "--merge", str(raw.folder), str(even.folder))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"group_column": "side"}, "'side'"),
        ({"group_column": None, "transport_scope": "batch"}, "or set group_column where answers are of groups"),
        ({"per_device_train_batch_size": 2}, "has 3 rows, and a batch has room for 2"),
        # What is known per group is said of the file, and not of the folder of its answers.
        ({"transported_anchor": 0.3}, r"transported_anchor is 0\.3, .*the teacher's rows in \S*/counts\.csv are"),
        ({"alpha": 0.5, "divergence": "kl"}, r"divergence is kl, .*the teacher's rows in \S*/counts\.csv are known"),
        ({"transport_scope": "batch"}, r"transport_scope is batch, and the teacher's rows in \S*/counts\.csv are"),
    ],
)
def test_runs_that_cannot_be(more: dict[str, Any], message: str, task: Path, student: str, tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("team,negative,positive\n1,3,0\n2,1,3\n3,3,0\n")
    given = {**GROUPED, "teacher_file": tmp_path / "counts.csv", **more}
    with pytest.raises(InputError, match=message):
        distilled(task, student, **{name: value for name, value in given.items() if value is not None})
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_server_that_is_asked_for_lists_teaches_pairs_and_sets(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(prompt: str, number: int) -> str:
        texts = prompt.split("Texts:\n")[1].split("\n\nAnswers:")[0].splitlines()
        said = ["positive" if "good" in text else "negative" for text in texts]
        if number == 2:  # of one list it leaves a row out
            said = said[1:]
        return "Sure:\n" + "\n".join(f"{n}. {word}" for n, word in enumerate(said, 1))

    settings: dict[str, Any] = {**TRANSPORTED, "transport_scope": "group", "teacher_rows_per_request": 4}
    with language_server(style="chat", says=says) as state:
        more = {"teacher_url": state.url, "transported_anchor": 0.3, "teacher_concurrency": 1}
        records = distilled(task, student, **settings, **more)
        asked = len(state.requests)
        again = distilled(task, student, **settings, **more)
        assert len(state.requests) == asked + 1  # the test request; the answers are there
        for changes, message in (
            ({"per_device_train_batch_size": 3}, "is 4, and a batch has 3 rows"),
            ({"transport_scope": "batch"}, "transport_scope is batch, and the teacher's rows in lists of 4 rows"),
            ({"group_column": "team"}, "makes each request a group, and group_column 'team' says of other groups"),
        ):
            with pytest.raises(InputError, match=message):
                distilled(task, student, **{**settings, **more, **changes})
        assert len(state.requests) == asked + 1  # refused before anything is asked
    assert asked == 5  # a test, three lists to train on, and one for evaluation
    said_all = " ".join(capsys.readouterr().err.split())
    assert "is asked about 16 rows, in lists of 4. That takes at most 4 requests" in said_all
    assert "3 of 4 lists (16 rows) have an answer for each row" in said_all
    assert "Of the requests, 4 are answered already" in said_all
    assert said_all.count("Asking toy") == 2  # once a run
    assert "1 with fewer answers than rows" in said_all
    assert "The teacher on 8 rows that it teaches: score 1.000" in said_all
    assert [record["loss"] for record in again] == [record["loss"] for record in records]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    teacher = next(row for row in results["rows"] if row["name"] == "teacher")
    assert (teacher["metrics"]["acc"], teacher["num_examples"]) == (1.0, 4)


def test_lists_have_no_place_for_what_a_teacher_reads_of_a_row_alone(task: Path, student: str) -> None:
    settings: dict[str, Any] = {**TRANSPORTED, "transport_scope": "group", "teacher_rows_per_request": 4}
    with pytest.raises(InputError, match="teacher_num_fewshot say what a teacher reads of a row alone"):
        distilled(task, student, **settings, teacher_url="http://127.0.0.1:9/v1", teacher_num_fewshot=2)
