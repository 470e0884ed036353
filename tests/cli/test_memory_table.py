"""`sinkd env --estimate` as a user types it, on tiny models."""

import re

import pytest

from sinkd_llm.cli import main
from sinkd_llm.cli.memory_table import device_counts, table
from sinkd_llm.cli.stand_in import stand_in
from tests.support.models import save


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_causal_lm, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_causal_lm(layers=4).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(teacher, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"teacher_model_name_or_path: {teacher}\nstudent_layers: 2\ntask: quickstart\nuse_peft: true\nlora_r: 4\n"
        f"per_device_train_batch_size: 4\nmax_length: 64\noutput_dir: {tmp_path / 'run'}\nuse_cpu: true\n"
    )
    return path


def estimate(capsys, *argv):
    code = main(["env", "--estimate", *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_a_recipe_is_estimated_without_its_weights(recipe, capsys, monkeypatch, tmp_path):
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    code, out, err = estimate(capsys, recipe, "--memory", "24GB", "--num_devices", "6")
    assert code == 0, err
    words = " ".join(out.split())
    assert re.search(r"sinkd distill, one micro-batch: the 4 longest of \d+ rows, 4 × \d+ tokens, 4 supervised", words)
    assert re.search(r"^Each device of 24 GB \(--memory\)$", out, re.M)
    assert re.search(r"^set-up +1 device +2 devices +4 devices +6 devices +host$", out, re.M)
    assert max(map(len, out.splitlines())) <= 80
    for name in ("no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, offload"):
        assert re.search(rf"^{name} +\d", out, flags=re.MULTILINE), out
        assert re.search(rf"^{name} .*\n  \+ gradient checkpointing +\d", out, flags=re.MULTILINE)
    assert "✗" not in out
    assert "--teacher_load_in_4bit" in out
    assert not (tmp_path / "run").exists()
    code, out, _ = estimate(capsys, recipe, "--memory", "1MB", "--num_devices", "1", "--max_train_samples", "20")
    assert code == 0
    assert "the 4 longest of 20 rows" in out
    assert "✓ where at most" in out
    assert "MB ✓" not in out


def test_flags_override_the_recipe_and_the_count_follows_them(recipe, teacher, capsys):
    from sinkd_llm.cli.parsing import parse_training
    from sinkd_llm.runs.memory import estimate_memory

    def estimated(*flags):
        return estimate_memory(*parse_training("distill", ["--config", str(recipe), *flags]))

    base = estimated()
    assert estimated("--per_device_train_batch_size", "8").steps[False].activations == pytest.approx(
        2 * base.steps[False].activations, rel=0.1
    )
    assert estimated("--use_peft", "false").student.trained > 10 * base.student.trained
    assert estimated("--student_layers", "3").student.parameters > base.student.parameters
    assert estimated("--teacher_load_in_4bit").teacher.weights < base.teacher.weights
    assert estimated("--dtype", "bfloat16").student.weights < base.student.weights
    assert estimated("--bf16").steps[False].activations < base.steps[False].activations
    assert estimated("--optim", "sgd").optimizer == 0
    groups = estimated("--transport_scope", "group", "--group_column", "batch", "--transported_weight", "1")
    assert groups.steps[False].loss > base.steps[False].loss


def test_the_plan_has_the_models_that_the_run_has(recipe, teacher, tmp_path):
    from peft import LoraConfig

    from sinkd_llm import SinKDConfig, SinKDTrainer, load_task
    from sinkd_llm.cli.parsing import parse_training
    from sinkd_llm.models import count_parameters
    from sinkd_llm.runs.memory import estimate_memory

    estimated = estimate_memory(*parse_training("distill", ["--config", str(recipe)]))
    trainer = SinKDTrainer(
        args=SinKDConfig(
            str(tmp_path), teacher_model_name_or_path=str(teacher), student_layers=2, use_cpu=True, report_to="none"
        ),
        train_dataset=load_task("quickstart").load("train", limit=4),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    assert (estimated.student.parameters, estimated.student.trained) == count_parameters(trainer.model)
    assert estimated.teacher.parameters == count_parameters(trainer.teacher.model)[0]


def test_an_adapter_folder_is_estimated_as_its_base(recipe, teacher, tmp_path, capsys):
    argv = [
        "--model_name_or_path",
        str(teacher),
        "--task",
        "quickstart",
        "--max_steps",
        "1",
        "--max_train_samples",
        "4",
    ]
    argv += ["--max_eval_samples", "2", "--use_cpu", "true", "--save_strategy", "no", "--use_peft"]
    assert main(["finetune", *argv, "--output_dir", str(tmp_path / "tuned")]) == 0
    code, out, err = estimate(capsys, recipe, "--teacher_model_name_or_path", tmp_path / "tuned")
    assert code == 0, err
    assert "--teacher_load_in_4bit" in out


def test_a_cached_teacher_takes_nothing(recipe, teacher, capsys):
    code, out, err = estimate(capsys, recipe, "--teacher_cache", "not-written-yet")
    assert code == 0, err
    assert re.search(r"^teacher's weights +– +–$", out, flags=re.MULTILINE), out
    assert re.search(r"^teacher's forward +– +–$", out, flags=re.MULTILINE), out
    flags = ["--teacher_cache", "not-written-yet", "--model_name_or_path", teacher, "--student_layers", "2"]
    recipe.write_text("".join(line for line in recipe.open() if "teacher" not in line))
    code, out, err = estimate(capsys, recipe, *flags)
    assert code == 0, err
    assert "sinkd distill, one micro-batch" in out
    assert not re.search(r"^teacher +[\d,.]", out, flags=re.MULTILINE), "the student's numbers are not the teacher's"


def test_verbalizers_are_estimated(recipe, capsys):
    code, out, err = estimate(capsys, recipe, "--vocabulary", "verbalizers")
    assert code == 0, err
    assert "logits and transport" in out


def test_finetuning_has_no_teacher(teacher, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: {teacher}\ntask: quickstart\nmax_length: 64\nuse_cpu: true\n")
    code, out, err = estimate(capsys, path)
    assert code == 0, err
    assert "sinkd finetune, one micro-batch: the 8 longest" in out
    assert "--teacher_load_in_4bit" not in out


def test_without_the_data_the_rows_have_max_length(recipe, capsys):
    code, out, err = estimate(capsys, recipe, "--task", "sst2", "--data_dir", "absent")
    assert code == 0, err
    words = " ".join(out.split())
    assert re.search(
        r"4 rows of max_length, 4 × 64 tokens, 4 supervised \(the data could not be read: .*absent", words
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--memory", "24GB"], "--memory or --num_devices needs --estimate RECIPE.yaml"),
        (["--alpha", "0.5"], "--alpha needs --estimate"),
        (["--estimate", "absent.yaml"], "There is no recipe absent.yaml: it does not exist"),
        (["--estimate", "{recipe}", "--memory", "lots"], "--memory is 'lots'; give a number with a unit"),
        (["--estimate", "{recipe}", "--num_devices", "0"], "--num_devices is 0"),
        (["--estimate", "{recipe}", "--num_devices", "many"], "--num_devices: invalid int value: 'many'"),
        (["--estimate"], "--estimate: expected one argument"),
        (["--estimate="], "--estimate needs a file"),
        (["--memory="], "--memory or --num_devices needs --estimate"),
        (["--estimate", "{recipe}", "--alhpa", "1"], "Did you mean '--alpha'"),
        (["--estimate", "{recipe}", "--student_layers", "9"], "9"),
        (["--estimate", "{recipe}", "--teacher_model_name_or_path", "./absent"], "no folder or file './absent'"),
    ],
)
def test_mistakes_are_one_line(recipe, capsys, argv, message):
    assert main(["env", *(word.format(recipe=recipe) for word in argv)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_device_counts(most, counts):
    assert device_counts(most) == counts


def test_columns_that_do_not_fit_follow_below():
    rows = [["a name", *("1234567 ✓" for _ in range(9))]]
    text = table(["set-up", *(f"{n} devices" for n in range(9))], rows)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("a name") == 2
    assert all(f"{n} devices" in text for n in range(9))


def test_a_teacher_that_is_not_trained_yet_is_counted_as_what_it_is_made_from(recipe, teacher, tmp_path, capsys):
    (tmp_path / "teacher.yaml").write_text(f"model_name_or_path: {teacher}\noutput_dir: runs/not-there\n")
    code, out, err = estimate(capsys, recipe, "--memory", "24GB", "--teacher_model_name_or_path", "runs/not-there")
    assert code == 0, err
    assert "from which" not in out
    said = f"The teacher runs/not-there is not there yet: it is counted as {teacher}, from which"
    assert f"{said} {tmp_path / 'teacher.yaml'} trains it." in err
    code, _, err = estimate(capsys, recipe, "--teacher_model_name_or_path", "runs/nowhere")
    assert code == 2
    assert "name one of its size: --teacher_model_name_or_path smollm2-135m" in err


def test_a_teacher_with_a_head_stands_there_with_one(tmp_path, tiny_model, marked_tokenizer, capsys):
    base = save(tmp_path / "base", tiny_model("bert"), marked_tokenizer("bert"))
    (tmp_path / "teacher.yaml").write_text(f"model_name_or_path: {base}\noutput_dir: runs/not-there\n")
    (tmp_path / "student.yaml").write_text(
        "teacher_model_name_or_path: runs/not-there\nstudent_layers: 1\ntask: quickstart\nuse_cpu: true\n"
    )
    code, out, err = estimate(capsys, tmp_path / "student.yaml", "--memory", "24GB")
    assert code == 0, err
    assert "sinkd distill" in out


@pytest.mark.parametrize("name", ["sst2_student_sinkd", "sst2_student_cached"])
def test_a_recipe_of_the_package_is_estimated_by_its_name_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = stand_in("runs/sst2-teacher", name)
    assert found is not None
    assert found[0] == "smollm2-135m"
    assert found[1].endswith("sst2_teacher.yaml")
    assert stand_in(None, name) is None
    assert stand_in("runs/other", name) is None
    (tmp_path / "runs" / "sst2-teacher").mkdir(parents=True)
    assert stand_in("runs/sst2-teacher", name) is None
