"""The commands as a user types them, on a tiny random model: train, distil, score, interrupt, resume."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from sinkd_llm.cli import main

SHORT = [
    *("--task", "quickstart", "--max_train_samples", "32", "--max_eval_samples", "16", "--max_length", "64"),
    *("--per_device_train_batch_size", "4", "--logging_steps", "2", "--learning_rate", "0.01", "--seed", "1"),
    *("--use_cpu", "true", "--save_strategy", "no"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_causal_lm, tiny_tokenizer) -> Path:
    """A folder with a random model of four layers."""
    folder = tmp_path_factory.mktemp("base")
    tiny_causal_lm(layers=4).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, base) -> Path:
    """What `sinkd finetune` makes of it."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    argv = ["--model_name_or_path", str(base), "--output_dir", str(folder), "--max_steps", "6", *SHORT]
    assert main(["finetune", *argv, "--use_peft"]) == 0
    return folder


def distill(teacher, folder, *more):
    argv = ["--teacher_model_name_or_path", str(teacher), "--output_dir", str(folder), *SHORT]
    return main(["distill", *argv, "--student_layers", "2", "--use_peft", "--lora_r", "4", *more])


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_finetune_leaves_model_results_records_and_page(teacher):
    results = read_results(teacher)
    assert [row["name"] for row in results["rows"]] == ["before", "after"]
    assert results["command_line"].startswith("sinkd finetune --model_name_or_path")
    assert results["training"]["steps"] == 6
    assert results["rows"][1]["num_examples"] == 16
    assert results["rows"][1]["size_bytes"] > 0
    assert results["settings"]["learning_rate"] == 0.01
    assert set(results["settings"]) == {
        *("task", "max_train_samples", "max_eval_samples", "max_length", "per_device_train_batch_size"),
        *("logging_steps", "learning_rate", "seed", "use_cpu", "save_strategy", "model_name_or_path"),
        *("max_steps", "use_peft", "lora_target_modules", "model_init_kwargs"),
    }
    assert results["all_settings"]["add_eos"] is None
    assert results["peak_memory_bytes"] > 0
    assert results["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in results["versions"]["torch"]
    assert [r["step"] for r in read_metrics(teacher) if "loss" in r] == [2, 4, 6]
    assert "<svg" in (teacher / "report.html").read_text(encoding="utf-8")


def test_distill_prints_the_table_and_the_student_loads_by_itself(teacher, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "student"
    assert distill(teacher, folder, "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2") == 0
    captured = capsys.readouterr()
    assert re.search(r"^ *teacher +student before +student after *$", captured.out, flags=re.MULTILINE), captured.out
    interval = r" \[\d\.\d\d\d, \d\.\d\d\d\]"
    assert re.search(rf"^ *acc( +\d\.\d\d\d{interval}){{3}} *$", captured.out, flags=re.MULTILINE), captured.out
    assert re.search(r"step 2/4  loss \S+  ce \S+  kl \S+  sinkhorn ", captured.err), captured.err
    assert "eval_acc" in captured.err
    assert "Traceback" not in captured.err

    results = read_results(folder)
    teacher_row, before, after = results["rows"]
    assert teacher_row["metrics"] == pytest.approx(read_results(teacher)["rows"][1]["metrics"], abs=1e-5)
    assert after["parameters"] < teacher_row["parameters"]
    assert 0 < after["trainable_parameters"] < after["parameters"]
    assert 0 <= after["metrics"]["agreement"] <= 1
    assert before["share_of_teacher"] == pytest.approx(before["metrics"]["acc"] / teacher_row["metrics"]["acc"])
    assert results["settings"]["sinkhorn_epsilon"] == 0.1
    records = read_metrics(folder)
    assert any("sinkhorn/diagonal_mass" in record for record in records)
    assert any("eval_agreement" in record for record in records)

    # From another place and directory, as a stranger would: first by plain Transformers, then by `sinkd`.
    moved = tmp_path / "elsewhere" / "student"
    moved.parent.mkdir()
    folder.rename(moved)
    monkeypatch.chdir(moved.parent)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("student")
    logits = AutoModelForCausalLM.from_pretrained("student")(**tokenizer("good film", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()

    argv = ["--model_name_or_path", "student", "--task", "quickstart", "--max_eval_samples", "16"]
    assert main(["evaluate", *argv, "--max_length", "64", "--output", "scores/here.json"]) == 0
    scores = json.loads(Path("scores/here.json").read_text())
    assert scores["metrics"]["acc"] == after["metrics"]["acc"]
    assert len(scores["predictions"]) == 16
    assert scores["predictions"][0]["id"].startswith("quickstart-validation-")


def test_a_finished_run_is_kept_until_overwriting_is_asked_for(teacher, tmp_path, capsys):
    folder = tmp_path / "student"
    assert distill(teacher, folder, "--max_steps", "1") == 0
    assert distill(teacher, folder, "--max_steps", "1") == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert distill(teacher, folder, "--max_steps", "2", "--overwrite_output_dir") == 0
    assert read_results(folder)["training"]["steps"] == 2


def test_the_same_seed_gives_the_same_result(teacher, tmp_path):
    for name in ("a", "b"):
        assert distill(teacher, tmp_path / name, "--max_steps", "3") == 0
    a, b = (read_results(tmp_path / name) for name in ("a", "b"))
    assert a["training"]["loss"] == b["training"]["loss"]
    assert [row["metrics"] for row in a["rows"]] == [row["metrics"] for row in b["rows"]]


def test_ctrl_c_saves_and_the_printed_command_goes_on(teacher, tmp_path, capsys, monkeypatch):
    from sinkd_llm.training.callbacks import InterruptCallback

    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    assert distill(teacher, whole, "--max_steps", "6") == 0

    install = InterruptCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return install(self, args, state, control, **kwargs)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(InterruptCallback, "on_step_end", on_step_end)
        assert distill(teacher, folder, "--max_steps", "6") == 130
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert not (folder / "results.json").exists()
    # Starting again without resuming would lose the checkpoint, so it is refused.
    assert distill(teacher, folder, "--max_steps", "6") == 2
    assert "checkpoint-3 of an unfinished run" in capsys.readouterr().err

    import shlex

    command = next(line for line in printed.splitlines() if "--resume_from_checkpoint true" in line)
    assert main(shlex.split(command)[1:]) == 0
    a, b = read_results(whole), read_results(folder)
    assert [row["metrics"] for row in a["rows"]] == [row["metrics"] for row in b["rows"]]
    steps = [record["step"] for record in read_metrics(folder) if "loss" in record]
    assert steps == sorted(set(steps))
    assert {2, 4, 6} <= set(steps)

    from safetensors.torch import load_file

    weights = [load_file(run / "adapter_model.safetensors") for run in (whole, folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_prompt_completion_rows(base, tmp_path, capsys):
    rows = [{"prompt": f"{i} is", "completion": " yes" if i % 2 else " no"} for i in range(8)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--dataset_name", str(tmp_path), "--model_name_or_path", str(base), "--use_cpu", "true"]
    argv += ["--max_steps", "2", "--output_dir", str(tmp_path / "run"), "--save_strategy", "no"]
    assert main(["finetune", *argv]) == 0
    assert "loss" in read_results(tmp_path / "run")["rows"][1]["metrics"]
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "--model_name_or_path", "smollm2-135n", "--task", "quickstart"], "smollm2-135m"),
        (["evaluate", "--model_name_or_path", "{base}", "--task", "quickstrat"], "Did you mean 'quickstart'"),
        (["evaluate", "--model_name_or_path", "{base}", "--task", "sst2", "--data_dir", "absent"], "absent"),
        (["evaluate", "--model_name_or_path", "{base}", "--task", "quickstart", "--batch_size", "0"], "batch_size"),
        (["evaluate", "--model_name_or_path", "{base}", "--task", "quickstart", "--output", "."], "is a folder"),
        (["finetune", "--task", "quickstart", "--max_steps", "1"], "--model_name_or_path is missing"),
        (
            ["finetune", "--model_name_or_path", "{base}", "--task", "quickstart", "--resume_from_checkpoint", "true"],
            "no checkpoint in runs/finetune-quickstart",
        ),
        (
            ["distill", "--teacher_model_name_or_path", "{base}", "--task", "quickstart", "--student_layers", "9"],
            "9",
        ),
        (["tasks", "show", "quickstrat"], "Did you mean 'quickstart'"),
        (["tasks", "show", "quickstart", "--limit", "0"], "--limit is 0"),
        (["quickstart", "--max_stps", "1"], "--max_stps"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(base, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main([word.format(base=base) for word in argv]) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("sinkd: error: ")
    assert message in error
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("**/results.json"))


def test_quickstart_in_small(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--model_name_or_path", str(base), "--student_layers", "2", "--max_steps", "2"]
    argv += ["--max_eval_samples", "8", "--max_unlabelled_samples", "8"]
    for _ in range(2):  # the second one replaces the first
        assert main(["quickstart", *argv]) == 0
    captured = capsys.readouterr()
    for step in range(1, 5):
        assert f"[{step}/4]" in captured.err
    assert "student after" in captured.out
    for name in ("teacher", "student"):
        assert read_results(Path("runs/quickstart") / name)["training"]["steps"] == 2
    # The two commands it ends with work as they are printed.
    import shlex

    commands = [shlex.split(line)[1:] for line in captured.out.splitlines() if line.startswith("    sinkd ")]
    assert [command[0] for command in commands[-2:]] == ["distill", "evaluate"]
    assert main([*commands[-2], "--max_steps", "1", "--student_layers", "2", "--max_eval_samples", "4"]) == 0
    assert main([*commands[-1], "--max_eval_samples", "4"]) == 0


def test_tasks_and_env_print(capsys):
    assert main(["tasks"]) == 0
    assert "sst2_question" in capsys.readouterr().out
    assert main(["tasks", "show", "quickstart", "--limit", "1", "--split", "validation"]) == 0
    shown = capsys.readouterr().out
    assert "Review: " in shown
    assert "→ ' " in shown
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"torch         {torch.__version__}" in shown
    assert "smollm2-135m" in shown


@pytest.mark.parametrize(
    ("family", "head", "kind", "task_type"),
    [
        ("t5", "", "seq2seq-lm", "SEQ_2_SEQ_LM"),
        ("bert", "MaskedLM", "sequence-classification", "SEQ_CLS"),
        ("bert", "MaskedLM", "masked-lm", None),
    ],
)
def test_the_same_commands_for_every_family(
    family, head, kind, task_type, tiny_model, marked_tokenizer, tmp_path, capsys
):
    tiny_model(family, head, layers=4).save_pretrained(tmp_path / "base")
    marked_tokenizer(family).save_pretrained(tmp_path / "base")
    argv = ["--model_name_or_path", str(tmp_path / "base"), "--model_kind", kind, "--max_steps", "2", *SHORT]
    assert main(["finetune", *argv, "--output_dir", str(tmp_path / "teacher")]) == 0
    folder = tmp_path / "student"
    assert distill(tmp_path / "teacher", folder, "--max_steps", "2") == 0
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == task_type
    after = read_results(folder)["rows"][-1]["metrics"]
    argv = ["--model_name_or_path", str(folder), "--task", "quickstart", "--max_eval_samples", "16"]
    assert main(["evaluate", *argv, "--max_length", "64", "--output", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"]["acc"] == after["acc"]
