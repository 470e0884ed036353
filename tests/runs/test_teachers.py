"""Runs whose teacher is no model here, reads another prompt, or labels raw texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sinkd_llm import load_task
from sinkd_llm.cli.parsing import parse_recipe, parse_training
from sinkd_llm.errors import InputError
from sinkd_llm.runs import run_distill, run_finetune
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.cache import run_cache
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.merging import merge_caches
from sinkd_llm.runs.training import check_finetune
from sinkd_llm.teachers import CachedTeacher
from tests.support.language_server import language_server
from tests.support.models import decoder, encoder_or_encoder_decoder, marked_tokenizer, save, word_tokenizer
from tests.support.task_files import write_task

WORDS = ("good", "great", "bad", "awful")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"{WORDS[i % 4]} film{' is a plot' * (i % 3)} {i}", "label": int(i % 4 < 2)}
        for i in range(start, start + count)
    ]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task over local rows with a bare text; answers are kept in a folder of the test."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "kept"))
    for split, part in (("train", rows(12)), ("validation", rows(6, 100))):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    (tmp_path / "raw.txt").write_text("".join(f"{WORDS[i % 4]} food {i}\n" for i in range(8)))
    return write_task(tmp_path / "opinions.yaml", metadata={"version": 1, "texts": ["text"]})


@pytest.fixture
def student(tmp_path: Path) -> str:
    return str(save(tmp_path / "encoder", encoder_or_encoder_decoder("bert", num_labels=2), marked_tokenizer("bert")))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(save(tmp_path / "decoder", decoder(max_position_embeddings=512), word_tokenizer()))


def flags(task: Path, student: str, folder: Path, **more: Any) -> list[str]:
    settings = {
        **{"task": task, "model_name_or_path": student, "output_dir": folder / "out", "max_steps": 2},
        **{"per_device_train_batch_size": 4, "save_strategy": "no", "sinkhorn_weight": 0, "use_cpu": "true"},
        "logging_steps": 1,
        **more,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def distilled(*arguments: Any, **more: Any) -> Any:
    given = flags(*arguments, **more)
    return run_distill(*parse_training("distill", given), argv=given)


def test_a_file_of_answers_teaches_an_encoder(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["positive", "positive", "negative", "maybe"] * 3
    lines = ["row,answer", *(f"{i},{answer}" for i, answer in enumerate(answers))]
    (tmp_path / "answers.csv").write_text("\n".join(lines) + "\n")
    result = distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv")
    said = capsys.readouterr()
    said_all = " ".join((said.out + said.err).split())
    assert "answers 9 of 12 rows" in said_all
    assert "'maybe' (3 ×)" in said_all
    assert "The teacher on 9 rows that it teaches: score 1.000" in said_all
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("kl" in record for record in records)
    assert "rows for evaluation" not in said_all  # positions are those of the training rows
    assert [row.name for row in result.rows] == ["student before", "student after"]
    (tmp_path / "answers.csv").write_text("text,answer\n" + "".join(f"{r['text']},positive\n" for r in rows(6, 100)))
    with pytest.raises(InputError, match=r"answers\.csv"):  # none of the training rows
        distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv", overwrite_output_dir="true")


def test_a_row_that_a_server_refused_is_asked_again(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        return (400, {}, b'{"error": "content policy"}') if "plot 5" in str(body) and policy else None

    policy = True
    with language_server(style="chat", says=lambda prompt, number: "Topic: positive", fault=fault) as state:
        given = flags(task, student, tmp_path, teacher_url=state.url)
        words = [*given, "--output", str(tmp_path / "cache")]
        assert run_cache(*parse_recipe("cache", words)[:4], argv=given).manifest.tokens == 11
        policy = False
        # The same command puts the answer into the same cache.
        assert run_cache(*parse_recipe("cache", words)[:4], argv=given).manifest.tokens == 12
        said = " ".join(capsys.readouterr().err.split())
        state.says = lambda prompt, number: "I cannot say"
        task.write_text(task.read_text().replace("Review", "Opinion"))
        with pytest.raises(
            InputError, match=r"No answer of toy to the 12 training .* It said 'I cannot say' \(18 ×\)"
        ):
            run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "other")])[:4], argv=given)
    assert "1 of 18 rows have no teacher, because the server refused them" in said
    assert "Of the requests, 17 are answered already" in said


def test_a_file_that_answers_a_part_of_the_held_out_rows(task: Path, student: str, tmp_path: Path) -> None:
    lines = ["split,row,answer", *(f"train,{i},{('positive', 'negative')[i // 2 % 2]}" for i in range(12))]
    lines += [f"test,{i},{answer}" for i, answer in enumerate(["positive", "positive", "negative", "dunno"])]
    (tmp_path / "answers.csv").write_text("\n".join(lines) + "\n")
    result = distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv")
    # The rows are labelled 1, 1, 0, 0, 1, 1; the teacher is scored on the three that it answers.
    assert [row.name for row in result.rows] == ["teacher", "student before", "student after"]
    assert (result.rows[0].metrics["acc"], result.rows[0].num_examples) == (1.0, 3)
    assert "agreement" not in result.rows[-1].metrics


def test_a_file_knows_rows_by_ids_of_their_own(task: Path, student: str, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        given = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        lines = [json.dumps({**row, "ticket": f"{split}/{i}"}) for i, row in enumerate(given)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    answers = [f"train/{i},{('negative', 'positive')[i % 4 < 2]}" for i in range(12)]
    (tmp_path / "answers.csv").write_text("\n".join(["id,answer", *reversed(answers)]) + "\n")
    more: dict[str, Any] = {"id_column": "ticket", "max_train_samples": 8}
    distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv", **more)
    # The column may have the name that it has in the data.
    (tmp_path / "tickets.csv").write_text((tmp_path / "answers.csv").read_text().replace("id,", "ticket,", 1))
    named = {"teacher_file": tmp_path / "tickets.csv", "overwrite_output_dir": "true", **more}
    distilled(task, student, tmp_path, **named)
    cached = next((tmp_path / "kept" / "answers").glob("*/manifest.json"))
    kept = load_task(task, id_column="ticket").load("train", limit=8, seed=42)["id"][:]
    assert len(CachedTeacher(cached.parent).answers(kept)) == 8
    (tmp_path / "answers.csv").write_text("row,answer\n0,positive\n1,negative\n")
    with pytest.raises(InputError, match="ids that do not say it; give the file a column 'id'"):
        distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv", overwrite_output_dir="true", **more)


def test_answers_are_balanced_before_they_are_learned_from(
    task: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # All are held for positive, the negative ones (2, 3, 6, 7, …) a little less so.
    said = [{"row": i, "negative": 0.3 + 0.1 * (i % 4 > 1), "positive": 0.7 - 0.1 * (i % 4 > 1)} for i in range(12)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    more: dict[str, Any] = {"teacher_file": tmp_path / "answers.jsonl", "balance": "uniform"}
    distilled(task, student, tmp_path, **more)
    output = " ".join(capsys.readouterr().err.split())
    assert "score 0.500 → 1.000" in output
    assert "negative: 35.0% → 50.0%" in output
    assert "over 12 rows" in output
    cached = CachedTeacher(next((tmp_path / "kept" / "answers").glob("*/manifest.json")).parent)
    names = load_task(task).load("train")["id"][:]
    scores = np.stack([cached.answers(names)[name] for name in names])
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.mean(axis=0), 0.5, atol=1e-6)
    # The same of a cache that was written before.
    asked = flags(task, student, tmp_path, teacher_file=tmp_path / "answers.jsonl")
    run_cache(*parse_recipe("cache", [*asked, "--output", str(tmp_path / "raw")])[:4], argv=asked)
    asked = flags(task, student, tmp_path, balance="uniform")
    merge = ["--merge", str(tmp_path / "raw"), "--output", str(tmp_path / "even")]
    run_cache(*parse_recipe("cache", [*asked, *merge])[:4], argv=asked)
    again = CachedTeacher(tmp_path / "even").answers(names)
    logs = np.stack([again[name] for name in names])
    np.testing.assert_allclose(logs[:, 0] - logs[:, 1], scores[:, 0] - scores[:, 1], atol=1e-5)
    # A run that asks for another prior is told so.
    (tmp_path / "prior.yaml").write_text("negative: 2\npositive: 1\n")
    more = {"teacher_cache": tmp_path / "even", "balance": tmp_path / "prior.yaml", "overwrite_output_dir": "true"}
    with pytest.raises(InputError, match=r"balance is sinkhorn .*prior\.yaml .* was asked with sinkhorn uniform"):
        distilled(task, student, tmp_path, **more)


def test_a_cache_beside_another_teacher_is_refused(task: Path, student: str, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("row,answer\n" + "".join(f"{i},positive\n" for i in range(12)))
    given = flags(task, student, tmp_path, teacher_file=tmp_path / "answers.csv")
    run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "cache")])[:4], argv=given)
    distilled(task, student, tmp_path, teacher_file=tmp_path / "answers.csv", teacher_cache=tmp_path / "cache")
    for other in ({"teacher_file": tmp_path / "others.csv"}, {"teacher_url": "http://127.0.0.1:9"}):
        with pytest.raises(InputError, match=r"is of .*answers\.csv: a run has one teacher"):
            distilled(task, student, tmp_path, teacher_cache=tmp_path / "cache", overwrite_output_dir="true", **other)


def test_a_model_here_is_balanced_by_its_cache(task: Path, student: str, teacher: str, tmp_path: Path) -> None:
    given = flags(task, student, tmp_path, teacher_model_name_or_path=teacher, balance="labels", signal="choices")
    with pytest.raises(InputError, match=r"write its cache without --balance, then give 'sinkd cache --merge"):
        run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "cache")])[:4], argv=given)
    with pytest.raises(InputError, match="a teacher that is a model here answers in every step"):
        distilled(task, student, tmp_path, teacher_model_name_or_path=teacher, balance="labels", signal="choices")
    # As it says, with the same recipe; the balanced cache is this teacher's.
    given = flags(task, student, tmp_path, teacher_model_name_or_path=teacher, signal="choices")
    run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "cache")])[:4], argv=given)
    merge = ["--merge", str(tmp_path / "cache"), "--balance", "labels", "--output", str(tmp_path / "even")]
    run_cache(*parse_recipe("cache", [*given, *merge])[:4], argv=given)
    more = {"teacher_cache": tmp_path / "even", "teacher_model_name_or_path": teacher, "overwrite_output_dir": "true"}
    assert distilled(task, student, tmp_path, signal="choices", **more).rows[-1].name == "student after"


def test_a_column_of_the_data_says_which_cache_speaks(task: Path, student: str, tmp_path: Path) -> None:
    given = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "source": "ab"[i % 2]}) for i, row in enumerate(given)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    for name, answer in (("a", "positive"), ("b", "negative")):
        said = "\n".join(["row,answer", *(f"{i},{answer}" for i in range(12))])
        (tmp_path / f"{name}.csv").write_text(said + "\n")
        asked = flags(task, student, tmp_path, teacher_file=tmp_path / f"{name}.csv")
        run_cache(*parse_recipe("cache", [*asked, "--output", str(tmp_path / name)])[:4], argv=asked)
    asked = flags(task, student, tmp_path)
    merge = ["--merge", str(tmp_path / "a"), str(tmp_path / "b"), "--merge_by", "source"]
    run_cache(*parse_recipe("cache", [*asked, *merge, "--output", str(tmp_path / "both")])[:4], argv=asked)
    merged = CachedTeacher(tmp_path / "both")
    names = load_task(task).load("train")["id"][:]
    scores = merged.answers(names)
    assert [int(scores[name].argmax()) for name in names] == [1, 0] * 6


def test_a_cached_decoder_teaches_from_raw_texts(task: Path, student: str, teacher: str, tmp_path: Path) -> None:
    more = {"unlabelled_file": tmp_path / "raw.txt", "labels_per_class": 2, "signal": "choices"}
    more |= {"unlabelled_ratio": 0.5, "overwrite_output_dir": "true"}
    given = flags(task, student, tmp_path, teacher_model_name_or_path=teacher, **more)
    written = run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "cache")])[:4], argv=given)
    assert written.manifest.layout.content == "choices"
    assert written.manifest.tokens == 20
    assert written.manifest.teacher_score is not None
    by_agreement = {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "agreement"}
    result = distilled(task, student, tmp_path, teacher_cache=tmp_path / "cache", **more, **by_agreement)
    assert [row.name for row in result.rows] == ["teacher", "student before", "student after"]
    assert "agreement" in result.rows[-1].metrics
    # The same answers, asked in every step.
    here = distilled(
        task,
        student,
        tmp_path,
        teacher_model_name_or_path=teacher,
        **more,
    )
    assert here.rows[0].metrics == result.rows[0].metrics
    assert here.training["loss"] == pytest.approx(result.training["loss"], rel=1e-5)


def test_a_cache_of_other_texts_is_refused(task: Path, student: str, teacher: str, tmp_path: Path) -> None:
    given = flags(task, student, tmp_path, teacher_model_name_or_path=teacher, signal="choices")
    run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / "cache")])[:4], argv=given)
    file = tmp_path / "train.jsonl"
    file.write_text(file.read_text().replace("great film", "great food", 1))
    with pytest.raises(InputError, match="1-"):
        distilled(task, student, tmp_path, teacher_cache=tmp_path / "cache")


def test_the_teacher_reads_its_own_prompt_with_examples(
    task: Path, student: str, teacher: str, tmp_path: Path
) -> None:
    long = task.with_name("long.yaml")
    long.write_text(f'include: {task.name}\ntask: long\ndoc_to_text: "Is this good? {{{{text}}}}\\nAnswer:"\n')
    arguments = TaskArguments(task=str(task), teacher_task=str(long), teacher_num_fewshot=2)
    data = load_run_data(arguments, seed=0)
    for row, asked in zip(data.train, data.train["teacher"], strict=True):
        assert asked["prompt"].count("Is this good?") == 3
        assert asked["prompt"].endswith(f"Is this good? {row['text']}\nAnswer:")
        assert not asked["prompt"].startswith(f"Is this good? {row['text']}\nAnswer: ")
        assert row["prompt"].startswith("Review:")
    again = load_run_data(arguments, seed=0)
    assert again.train["teacher"][:] == data.train["teacher"][:]
    assert load_run_data(arguments, seed=1).train["teacher"][:] != data.train["teacher"][:]
    result = distilled(
        task, student, tmp_path, teacher_model_name_or_path=teacher, teacher_task=long, teacher_num_fewshot=2
    )
    assert result.rows[0].name == "teacher"


def test_classes_with_fewer_labels_are_named(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = load_run_data(TaskArguments(task=str(task), labels_per_class=7), seed=3).train["label"][:]
    assert sorted(labels) == [0] * 6 + [1] * 6
    said = " ".join(capsys.readouterr().err.split())
    assert "labels_per_class is 7: 12 of 12 labels are kept" in said
    assert "2 of the classes have fewer labels, the fewest 'positive' with 6: all of theirs are kept" in said


def test_labels_are_forgotten_but_for_a_few_of_each_answer(task: Path) -> None:
    data = load_run_data(TaskArguments(task=str(task), labels_per_class=2), seed=3)
    labels = data.train["label"][:]
    assert sorted(label for label in labels if label >= 0) == [0, 0, 1, 1]
    assert [bool(text) for text in data.train["completion"]] == [label >= 0 for label in labels]
    assert data.evaluation is not None
    assert -1 not in data.evaluation["label"][:]


def test_another_split_gives_rows_without_labels(task: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(task.read_text())
    content["dataset_kwargs"]["data_files"]["test"] = "test.jsonl"
    task.write_text(yaml.safe_dump({**content, "test_split": "test"}))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(5, 200)))
    data = load_run_data(TaskArguments(task=str(task), dataset_unlabelled_split="test"), seed=3)
    labels, names = data.train["label"][:], data.train["id"][:]
    assert (len(labels), labels[12:], data.train["completion"][12:]) == (17, [-1] * 5, [""] * 5)
    assert [name.split("-")[1] for name in names] == ["train"] * 12 + ["test"] * 5
    sample = TaskArguments(task=str(task), dataset_unlabelled_split="test", max_unlabelled_samples=2)
    assert len(load_run_data(sample, seed=3).train) == 14
    with pytest.raises(InputError, match="both given"):
        TaskArguments(task=str(task), dataset_unlabelled_split="test", unlabelled_file="raw.txt")
    with pytest.raises(InputError, match="dataset_unlabelled_split"):
        TaskArguments(task=str(task), dataset_unlabelled_split="train")


def test_fine_tuning_refuses_rows_without_labels(task: Path, student: str, tmp_path: Path) -> None:
    given = flags(task, student, tmp_path, unlabelled_file=tmp_path / "raw.txt")
    with pytest.raises(InputError, match="finetune learns from labels alone"):
        run_finetune(*parse_training("finetune", given))
    given = flags(task, student, tmp_path, labels_per_class=2, labelled_rows_only=True)
    task_args, training_args, model_args = parse_training("finetune", given)
    check_finetune(training_args, model_args, task_args)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacher_file": "a.csv", "teacher_url": "http://127.0.0.1:9"}, "a run has one teacher"),
        ({"teacher_model": "large"}, "about a server"),
        ({"teacher_file": "missing.csv"}, "missing.csv"),
        ({}, "teacher_url"),
    ],
)
def test_teachers_that_cannot_be(task: Path, student: str, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        distilled(task, student, tmp_path, **more)


def written(task: Path, tmp_path: Path, student: str, name: str, probabilities: list[str]) -> Path:
    """A cache of the first training rows, as a file says."""
    lines = ["row,prob_0,prob_1", *(f"{i},{p}" for i, p in enumerate(probabilities))]
    (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    given = flags(task, student, tmp_path, teacher_file=tmp_path / f"{name}.csv")
    run_cache(*parse_recipe("cache", [*given, "--output", str(tmp_path / name)])[:4], argv=given)
    return tmp_path / name


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("probabilities", [(2 * 0.2 + 0.6) / 3, 0.9, 0.7]),
        ("logits", [(0.2**2 * 0.6) ** (1 / 3) / ((0.2**2 * 0.6) ** (1 / 3) + (0.8**2 * 0.4) ** (1 / 3)), 0.9, 0.7]),
    ],
)
def test_several_caches_become_one(task: Path, student: str, tmp_path: Path, by: str, expected: list[float]) -> None:
    first = written(task, tmp_path, student, "first", ["0.2,0.8", "0.9,0.1"])
    second = written(task, tmp_path, student, "second", ["0.6,0.4", ",", "0.7,0.3"])
    given = flags(task, student, tmp_path)
    words = ["--merge", str(first), str(second), "--merge_weights", "2", "1", "--merge_by", by]
    run_cache(*parse_recipe("cache", [*given, *words, "--output", str(tmp_path / "both")])[:4], argv=given)
    names = load_run_data(TaskArguments(task=str(task)), 0).train["id"][:4]
    merged = CachedTeacher(tmp_path / "both").answers(names)
    assert [name in merged for name in names] == [True, True, True, False]
    found = [float(np.exp(merged[name][0]) / np.exp(merged[name]).sum()) for name in names[:3]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_column_says_which_cache_speaks(task: Path, student: str, tmp_path: Path) -> None:
    first = written(task, tmp_path, student, "first", ["0.2,0.8", "0.9,0.1"])
    second = written(task, tmp_path, student, "second", ["0.6,0.4", "0.5,0.5"])
    data = load_run_data(TaskArguments(task=str(task)), 0)
    speakers = ["second", "first"] + ["0"] * 10
    rows = dataclasses.replace(data, train=data.train.add_column("speaker", speakers))
    merge_caches(tmp_path / "both", rows, [first, second], by="speaker")
    names = data.train["id"][:2]
    merged = CachedTeacher(tmp_path / "both").answers(names)
    assert [float(np.exp(merged[name][0])) for name in names] == pytest.approx([0.6, 0.9], rel=1e-5)
    with pytest.raises(InputError, match="neither probabilities nor logits, nor a column"):
        merge_caches(tmp_path / "more", data, [first, second], by="speaker")
    with pytest.raises(InputError, match="give one for each"):
        merge_caches(tmp_path / "more", data, [first, second], weights=[1.0])


def test_rows_that_are_scored_and_taught_are_counted(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = rows(1, 100)[0]["text"]
    (tmp_path / "raw.txt").write_text(f"something else\n{text.upper()}\n")
    load_run_data(TaskArguments(task=str(task), unlabelled_file=str(tmp_path / "raw.txt")), 0)
    said = capsys.readouterr()
    assert "1 of 6 rows for evaluation also stand among the rows without labels" in " ".join(
        (said.out + said.err).split()
    )


def cache(task: Path, student: str, tmp_path: Path, name: str, *words: str, **more: Any) -> Any:
    given = [*flags(task, student, tmp_path, **more), *words, "--output", str(tmp_path / name)]
    return run_cache(*parse_recipe("cache", given)[:4], argv=given)


def test_how_a_teacher_was_asked_is_part_of_its_cache(task: Path, student: str, teacher: str, tmp_path: Path) -> None:
    more = {"teacher_model_name_or_path": teacher, "signal": "choices"}
    cache(task, student, tmp_path, "sums", **more)
    cache(task, student, tmp_path, "means", choice_normalisation="token", **more)
    with pytest.raises(InputError, match="holds a cache of something else"):
        cache(task, student, tmp_path, "sums", choice_normalisation="token", **more)
    with pytest.raises(InputError, match="holds a cache of something else"):
        cache(task, student, tmp_path, "sums", teacher_num_fewshot=2, **more)
    with pytest.raises(InputError, match="holds scores by token"):
        distilled(task, student, tmp_path, teacher_cache=tmp_path / "means")
    with pytest.raises(InputError, match="was asked with none"):
        distilled(task, student, tmp_path, teacher_cache=tmp_path / "sums", teacher_num_fewshot=2)
    merge = ["--merge", str(tmp_path / "sums"), str(tmp_path / "means")]
    with pytest.raises(InputError, match="by sum and by token"):
        cache(task, student, tmp_path, "both", *merge)
    with pytest.raises(InputError, match="two are one folder"):
        cache(task, student, tmp_path, "sums", *merge, "--overwrite", "true")
    assert CachedTeacher(tmp_path / "sums").over_choices


def test_the_examination_reads_scores_as_the_loss_does(
    task: Path, student: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = task.with_name("words.yaml")
    choices = 'doc_to_choice: ["not a good film is it", "very good film"]'
    words.write_text(f"include: {task.name}\ntask: words\n{choices}\n")
    more = {"teacher_model_name_or_path": teacher, "signal": "choices"}
    entropies = {}
    for normalisation in ("sum", "token"):
        out = {"overwrite_output_dir": "true", "choice_normalisation": normalisation}
        distilled(words, student, tmp_path, **more, **out)
        said = " ".join("".join(capsys.readouterr()).split())
        examined = float(said.split("mean entropy ")[1].split()[0])
        records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        learned = next(record["teacher_entropy"] for record in records if "teacher_entropy" in record)
        entropies[normalisation] = examined, learned
    assert entropies["sum"][0] == pytest.approx(entropies["sum"][1], abs=0.05)
    assert entropies["token"][0] == pytest.approx(entropies["token"][1], abs=0.05)
    assert entropies["token"][0] > entropies["sum"][0] + 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"packing": "true"}, "packing is on"),
        ({"vocabulary": "verbalizers"}, "no other words to leave out"),
        ({"alpha": 0, "labels_per_class": 1}, "nothing is learned from them"),
        ({"unlabelled_ratio": 0.5}, "all rows have labels"),
    ],
)
def test_settings_that_mean_nothing_over_choices(
    task: Path, student: str, teacher: str, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distilled(task, student, tmp_path, teacher_model_name_or_path=teacher, signal="choices", **more)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": "verbalizers"}, "there are no other words to leave out"),
        ({"packing": "true"}, "it lays single answers end to end"),
        ({"fused": "always"}, "no hidden states whose head the loss could take over"),
        ({"balance": "nothing.yaml"}, r"balance.*nothing\.yaml"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_a_server_is_asked(
    task: Path, student: str, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    # Nothing listens there: a run that asks says so.
    with pytest.raises(InputError, match=message):
        distilled(task, student, tmp_path, teacher_url="http://127.0.0.1:9", **changes)
