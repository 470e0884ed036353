"""`--dry_run`: what is said of a run, and that nothing of it is written."""

import json

import pytest
from trl import ModelConfig

from sinkd_llm.cli import main
from sinkd_llm.errors import InputError
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.rehearsal import rehearse, updates_of
from sinkd_llm.training.config import SinKDConfig
from tests.support.models import save


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_causal_lm, tiny_tokenizer):
    return save(tmp_path_factory.mktemp("teacher"), tiny_causal_lm(layers=3), tiny_tokenizer)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Eight rows with a label and two without; the first one would clear a terminal."""
    folder = tmp_path_factory.mktemp("task")
    rows = [
        {"text": f"the film was \x1b[2J good {i}", "label": ["good", "bad", ""][i % 2 if i < 8 else 2], "team": i // 2}
        for i in range(10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dev.jsonl").write_text(json.dumps({"text": "the plot was bad", "label": "bad", "team": 0}) + "\n")
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\n"
        "dataset_kwargs: { data_files: { train: rows.jsonl, validation: dev.jsonl } }\n"
        "training_split: train\nvalidation_split: validation\noutput_type: multiple_choice\n"
        'doc_to_text: "review: {{text}}\\nsentiment:"\ndoc_to_choice: [good, bad]\ndoc_to_target: label\n'
    )
    return folder / "mine.yaml"


def settings(folder, **changes):
    return SinKDConfig(str(folder), use_cpu=True, report_to="none", **{"per_device_train_batch_size": 2, **changes})


def test_rows_updates_memory_and_time_are_said_and_nothing_is_written(teacher, task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    words = ["distill", "--teacher_model_name_or_path", str(teacher), "--student_layers", "1", "--task", str(task)]
    words += ["--allow_unlabelled", "--use_cpu", "--output_dir", str(folder), "--gradient_accumulation_steps", "2"]
    assert main([*words, "--per_device_train_batch_size", "2", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "review: the film was \\x1b[2J good 0\nsentiment:\n  → ' good'\n    ' bad'\n" in said
    assert "\x1b" not in said
    assert "good 2" in said
    assert "good 3" not in said
    text = " ".join(said.split())
    assert "10 rows to train on (8 with a label, 2 without), 1 to evaluate on" in text
    assert "updates 9, each of 4 rows (2 micro-batches of 2)" in text
    assert "for the training alone" in text
    assert f"output {folder} (not made)" in text
    assert "nothing was written" in text
    assert [*tmp_path.iterdir()] == []


def test_numbers_have_no_transported_cross_entropy(tiny_model, marked_tokenizer, tmp_path):
    rows = [{"text": f"film {i}", "score": i % 3} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\n"
        "dataset_kwargs: { data_files: { train: rows.jsonl, validation: rows.jsonl } }\n"
        "training_split: train\nvalidation_split: validation\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: ["0", "1", "2"]\ndoc_to_target: score\n'
        'metadata: { scoring: { target: "{{score}}" } }\n'
    )
    for name, seed in (("teacher", 1), ("student", 2)):
        save(tmp_path / name, tiny_model("bert", num_labels=1, seed=seed), marked_tokenizer("bert"))
    given = {"teacher_model_name_or_path": str(tmp_path / "teacher"), "sinkhorn_weight": 0.0, "max_steps": 2}
    arguments = settings(tmp_path / "run", **given, divergence="none", alpha=0.0, transported_weight=10.0)
    student = ModelConfig(model_name_or_path=str(tmp_path / "student"))
    with pytest.raises(InputError, match="a number has no cross-entropy"):
        rehearse("distill", TaskArguments(task=str(tmp_path / "mine.yaml")), arguments, student)
    assert not (tmp_path / "run").exists()


def test_the_updates_are_those_of_the_run(teacher, task, tmp_path):
    from sinkd_llm import SinKDTrainer

    arguments = TaskArguments(task=str(task), allow_unlabelled=True)
    data = load_run_data(arguments, 0, ["team"])
    for changes in (
        {"num_train_epochs": 1},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 4},
        {"num_train_epochs": 1, "dataloader_drop_last": True, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 1, "unlabelled_ratio": 0.5},
        {"max_steps": 3},
        # Groups of two leave one row of three free.
        {"per_device_train_batch_size": 3, "transport_scope": "group", "group_column": "team"},
    ):
        args = settings(tmp_path / "run", teacher_model_name_or_path=str(teacher), student_layers=1, **changes)
        trainer = SinKDTrainer(args=args, train_dataset=data.train)
        loader = trainer.get_train_dataloader()
        assert updates_of(data, args, 1) == (trainer.set_initial_training_values(args, loader)[-1], True), changes
    args = settings(tmp_path / "run", num_train_epochs=1)
    assert updates_of(data, args, 2) == (3, True)  # 10 rows, 4 at a time


def test_a_run_over_choices_says_what_the_updates_took(teacher, task, tmp_path):
    args = settings(tmp_path / "run", teacher_model_name_or_path=str(teacher), student_layers=1, signal="choices")
    found = rehearse("distill", TaskArguments(task=str(task), allow_unlabelled=True), args, ModelConfig())
    assert found.seconds > 0
    assert "the most that this process held" in found.lines["memory"]
    assert args.output_dir == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_measured_cheaply_is_not(teacher, task, tmp_path, monkeypatch):
    monkeypatch.setattr("sinkd_llm.runs.rehearsal._CHEAP_BYTES", 10)
    args = settings(tmp_path / "run", num_train_epochs=2)
    arguments = TaskArguments(task=str(task), allow_unlabelled=False, max_train_samples=8)
    with pytest.raises(InputError, match="There is no label on line 9"):
        rehearse("finetune", arguments, args, ModelConfig(model_name_or_path=str(teacher)))
    arguments = TaskArguments(task="quickstart", max_train_samples=8, max_eval_samples=2)
    found = rehearse("finetune", arguments, args, ModelConfig(model_name_or_path=str(teacher)))
    assert (found.seconds, found.updates) == (None, 8)
    assert "which only the run itself loads" in found.lines["time"]
    assert "estimated from the model" in found.lines["memory"]


def test_what_the_run_refuses_is_refused(teacher, task, tmp_path):
    args = settings(tmp_path / "run", teacher_url="http://127.0.0.1:9", signal="tokens")
    with pytest.raises(InputError, match="signal is tokens"):
        rehearse(
            "distill",
            TaskArguments(task=str(task), allow_unlabelled=True),
            args,
            ModelConfig(model_name_or_path=str(teacher)),
        )
    args = settings(tmp_path / "run", teacher_url="http://127.0.0.1:9")
    found = rehearse(
        "distill",
        TaskArguments(task=str(task), allow_unlabelled=True),
        args,
        ModelConfig(model_name_or_path=str(teacher)),
    )
    assert "the server of the teacher is not asked" in found.lines["time"]


def test_rows_are_shown_as_a_classification_head_reads_them(tiny_model, marked_tokenizer, task, tmp_path, capsys):
    encoder = save(tmp_path / "encoder", tiny_model("bert", "MaskedLM"), marked_tokenizer("bert"))
    file = task.with_name("texts.yaml")
    text = task.read_text().replace("train: rows.jsonl", "train: labelled.jsonl")
    file.write_text(text + "metadata: { texts: [text] }\n")
    rows = (task.parent / "rows.jsonl").read_text().splitlines(keepends=True)
    (task.parent / "labelled.jsonl").write_text("".join(rows[:8]))
    words = ["finetune", "--task", str(file), "--use_cpu", "--output_dir", str(tmp_path / "run")]
    words += ["--report_to", "none", "--dry_run", "--model_name_or_path", str(encoder)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "the film was \\x1b[2J good 0\n  → good\n    bad\n" in said
    assert "sentiment:" not in said
    assert main([*words, "--model_kind", "masked-lm"]) == 0
    assert "sentiment:" in capsys.readouterr().out
