"""The tasks of the package, on the real files where they are."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import list_tasks, load_task

NAMES = ["ag_news", "boolq", "cola", "quickstart", "rte", "sst2"]
# rows of train and validation, share of each label in validation
REAL = {
    "sst2": (67349, 872, {0: 428, 1: 444}),
    "cola": (8551, 1043, {0: 322, 1: 721}),
    "rte": (2490, 277, {0: 146, 1: 131}),
    "boolq": (1302, 3270, {0: 1237, 1: 2033}),
    "ag_news": (6581, 2000, {0: 500, 1: 500, 2: 500, 3: 500}),
}
PROMPTS = [prompt for info in list_tasks() for prompt in info.prompts]


def test_list() -> None:
    infos = list_tasks()
    assert [info.name for info in infos] == NAMES
    assert all(len(info.prompts) >= 2 and info.prompts[0] == info.name for info in infos)
    assert all(info.description and info.metrics and info.choices for info in infos)
    assert {info.name: info.metrics for info in infos}["cola"] == ("mcc",)


@pytest.mark.parametrize("name", PROMPTS)
def test_file_is_named_after_its_task_and_prompts_differ(name: str) -> None:
    task = load_task(name)
    assert task.path.stem == task.name == name
    assert load_task(str(task.path)).config == task.config
    own = yaml.safe_load(task.path.read_text(encoding="utf-8"))
    assert "doc_to_text" in own


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"Unknown task 'sst-2'. Did you mean 'sst2'\? Built-in tasks: ag_"):
        load_task("sst-2")
    with pytest.raises(InputError, match=r"There is no task file .*mine\.yaml"):
        load_task("mine.yaml")


def test_sst2_prompt() -> None:
    example = load_task("sst2").render({"sentence": "a fine film . ", "label": 0}, 0, "train")
    assert example.prompt == "Review: a fine film .\nSentiment:"
    assert example.choices == (" negative", " positive")
    assert example.completion == " negative"


@pytest.mark.parametrize("name", REAL)
def test_real_rows(name: str, data_dir: Path) -> None:
    train, validation, labels = REAL[name]
    task = load_task(name)
    assert len(task.load("train", data_dir=data_dir)) == train
    data = task.load("validation", data_dir=data_dir)
    assert len(data) == validation
    assert Counter(data["label"]) == labels
    assert len(set(data["id"])) == validation
    assert all(row["completion"] == row["choices"][row["label"]] for row in data)


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_renders_cleanly(name: str, data_dir: Path) -> None:
    data = load_task(name).load("validation", data_dir=data_dir, limit=200, seed=0)
    for row in data:
        # A prompt that ends in white space would put two spaces before the answer.
        assert row["prompt"] == row["prompt"].strip()
        assert "  " not in row["choices"][0]
        assert all(choice.startswith(" ") for choice in row["choices"])
    assert len(set(data["prompt"])) > 150
