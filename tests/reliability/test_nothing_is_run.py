"""No file of a checkpoint or model folder runs code when it is read, and no code that comes with one runs unasked."""

import json
import shutil
import zipfile

import pytest
import torch

from sinkd_llm.cli import main


class Evil:
    """Pickled, it touches a file when it is opened."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (eval, (f"open({self.marker!r}, 'w').write('x')",))


@pytest.fixture(scope="module")
def stopped(distill_argv, tmp_path_factory):
    """A run folder with one checkpoint, and the flags that go on from it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    argv = distill_argv(folder, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2")
    assert main(argv) == 0
    return folder


def test_the_trap_works(tmp_path):
    """Opened without care, such a file does run: otherwise the tests below would show nothing."""
    torch.save({"state": Evil(tmp_path / "marker")}, tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_checkpoint_with_a_poisoned_file_is_refused(stopped, distill_argv, tmp_path, capsys, name):
    folder, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(stopped, folder)
    torch.save({"state": Evil(marker)}, folder / "checkpoint-2" / name)
    argv = distill_argv(folder, "--max_steps", "4", "--save_strategy", "no", "--resume_from_checkpoint", "true")
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    assert "holds something else than tensors and numbers" in captured.splitlines()[-1]
    assert not marker.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "adapter_model.bin", "extra.pkl"])
def test_poisoned_files_that_nobody_needs_are_not_opened(stopped, distill_argv, tmp_path, name):
    folder, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(stopped, folder)
    torch.save({"state": Evil(marker)}, folder / "checkpoint-2" / name)
    argv = distill_argv(folder, "--max_steps", "4", "--save_strategy", "no", "--resume_from_checkpoint", "true")
    assert main(argv) == 0
    assert not marker.exists()


EVALUATE = ("--task", "quickstart", "--max_eval_samples", "2", "--max_length", "64")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_a_model_folder_with_a_pickle_alone_is_refused(teacher, tmp_path, capsys, name):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(teacher, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"state": Evil(marker)}, folder / name)
    assert main(["evaluate", "--model_name_or_path", str(folder), *EVALUATE]) == 2
    assert "a pickle file can run code when it is opened, so it is not loaded" in capsys.readouterr().err
    assert not marker.exists()


def test_an_adapter_folder_with_a_pickle_alone_is_refused(teacher, tmp_path, capsys):
    folder, marker = tmp_path / "adapter", tmp_path / "marker"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(teacher), "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"state": Evil(marker)}, folder / "adapter_model.bin")
    assert main(["evaluate", "--model_name_or_path", str(folder), *EVALUATE]) == 2
    assert "a pickle file can run code" in capsys.readouterr().err
    assert not marker.exists()


def test_safetensors_that_are_a_pickle_in_disguise(teacher, tmp_path, capsys):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(teacher, folder)
    torch.save({"state": Evil(marker)}, folder / "model.safetensors")
    assert zipfile.is_zipfile(folder / "model.safetensors")
    assert main(["evaluate", "--model_name_or_path", str(folder), *EVALUATE]) == 2
    assert "is damaged or cut short" in capsys.readouterr().err
    assert not marker.exists()


@pytest.fixture
def custom_code(teacher, tmp_path, monkeypatch):
    """A folder whose configuration names classes in a Python file of its own, which touches a marker."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "custom", tmp_path / "marker"
    shutil.copytree(teacher, folder)
    touch = f"open({str(marker)!r}, 'w').write('x')\n"
    (folder / "custom.py").write_text(
        f"{touch}import transformers\n"
        "class CustomConfig(transformers.LlamaConfig):\n    model_type = 'sinkd-custom'\n"
        "class CustomWriter(transformers.LlamaForCausalLM):\n    config_class = CustomConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "sinkd-custom"
    config["auto_map"] = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomWriter"}
    config["architectures"] = ["CustomWriter"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder, marker


@pytest.mark.parametrize("command", ["evaluate", "finetune", "distill", "plan"])
def test_code_that_comes_with_a_model_does_not_run_unasked(custom_code, tmp_path, capsys, monkeypatch, command):
    folder, marker = custom_code
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    run = ["--task", "quickstart", "--max_steps", "1", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    argv = {
        "evaluate": ["evaluate", "--model_name_or_path", str(folder), *EVALUATE],
        "finetune": ["finetune", "--model_name_or_path", str(folder), *run],
        "distill": ["distill", "--teacher_model_name_or_path", str(folder), "--student_layers", "2", *run],
        "plan": ["env", "--estimate", str(tmp_path / "recipe.yaml")],
    }[command]
    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: {folder}\ntask: quickstart\n")
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    assert "it comes with code of its own, which runs only with --trust_remote_code" in captured.splitlines()[-1]
    assert not marker.exists()


def test_code_runs_where_it_was_asked_for(custom_code, capsys):
    folder, marker = custom_code
    argv = ["evaluate", "--model_name_or_path", str(folder), *EVALUATE, "--trust_remote_code"]
    assert main(argv) == 0, capsys.readouterr().err
    assert marker.exists()


def test_a_checkpoint_without_poison_still_resumes(stopped, distill_argv, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    argv = distill_argv(folder, "--max_steps", "4", "--save_strategy", "no", "--resume_from_checkpoint", "true")
    assert main(argv) == 0
