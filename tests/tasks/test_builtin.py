"""The tasks of the package, on the real files where they are."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import GLUE, SUPERGLUE
from sinkd_llm.tasks import list_tasks, load_task
from tests.support.task_files import write_task

# The data_dir of a task whose files have no folder of their own.
FOLDERS = {"instruct": "instruct-rasbt"}
# rows of train and validation, rows with each label in validation
REAL = {
    "sst2": (67349, 872, {0: 428, 1: 444}),
    "cola": (8551, 1043, {0: 322, 1: 721}),
    "rte": (2490, 277, {0: 146, 1: 131}),
    "boolq": (1302, 3270, {0: 1237, 1: 2033}),
    "ag_news": (6581, 2000, {0: 500, 1: 500, 2: 500, 3: 500}),
    "banking77": (10003, 3080, None),
    "clinc150": (15000, 4500, dict.fromkeys(range(150), 30)),
    "qqp": (31677, 1000, None),
    "stsb": (5749, 1500, None),
    "mnli": (9432, 1000, None),
    "qnli": (10293, 5463, {0: 2702, 1: 2761}),
    "wnli": (635, 71, {0: 40, 1: 31}),
    "copa": (400, 100, {0: 55, 1: 45}),
    "multirc": (27243, 4848, {0: 2773, 1: 2075}),
    "record": (32, 32, None),
    "sglue_rte": (2490, 277, {0: 146, 1: 131}),
    "wic": (5428, 638, {0: 319, 1: 319}),
    "wsc": (554, 104, {0: 66, 1: 38}),
}
# Their formats are known, but no files are here: see test_samples.py.
WITHOUT_FILES = ("cb", "mnli_mismatched", "mrpc", "trec")
PROMPTS = [prompt for info in list_tasks() for prompt in info.prompts]


GLUE_AND_SUPERGLUE = {task for benchmark in (GLUE, SUPERGLUE) for parts in benchmark.values() for task, _ in parts}


@pytest.fixture(scope="module")
def read(data_dir: Path) -> Callable[[str, str], Any]:
    """The rows of a task's split, each split rendered once."""
    done: dict[tuple[str, str], Any] = {}

    def load(name: str, split: str) -> Any:
        if (name, split) not in done:
            done[name, split] = load_task(name).load(split, data_dir=data_dir)
        return done[name, split]

    return load


def test_list() -> None:
    infos = {info.name: info for info in list_tasks()}
    assert set(infos) == {*GLUE_AND_SUPERGLUE, "ag_news", "banking77", "clinc150", "trec", "quickstart", "instruct"}
    assert list(infos) == sorted(infos)
    assert all(len(info.prompts) >= 2 and info.prompts[0] == name for name, info in infos.items())
    assert all(info.description and info.metrics for info in infos.values())
    assert {name for name, info in infos.items() if info.choices is None} == {"copa", "record", "instruct"}
    assert [name for name, info in infos.items() if info.output_type == "generate_until"] == ["instruct"]
    assert infos["cola"].metrics == ("mcc",)
    assert infos["mnli"].prompts == ("mnli", "mnli_reader")


@pytest.mark.parametrize("name", PROMPTS)
def test_file_is_named_after_its_task_and_prompts_differ(name: str) -> None:
    task = load_task(name)
    assert task.path.stem == task.name == name
    assert load_task(str(task.path)).config == task.config
    own = yaml.safe_load(task.path.read_text(encoding="utf-8"))
    assert "doc_to_text" in own or name == "mnli_mismatched"  # the same question of other data


def test_unknown_names() -> None:
    with pytest.raises(
        InputError, match=r"Unknown task 'sst-2'. Did you mean 'sst2'\? 'sinkd tasks' lists the \d+ that"
    ):
        load_task("sst-2")
    with pytest.raises(InputError, match=r"There is no task file .*mine\.yaml"):
        load_task("mine.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "mine"}, r"The task is \{.*; give the name of a built-in task, or .* Write the keys .* into"),
        (None, "The task is None; give the name"),
        (3, "The task is 3; give the name"),
        (["sst2"], r"The task is \['sst2'\]; give the name"),
        ("", "Unknown task ''"),
        ("SST2", r"Unknown task 'SST2'\. Did you mean 'sst2'\?"),
        ("nope", r"Unknown task 'nope'\. 'sinkd tasks' lists"),
        ("folder", "'folder' is a folder, and no task"),
        ("~/folder", "'~/folder' is a folder, and no task"),
        ("rows.json", "'rows.json' is a file of another kind, and no task"),
        ("~/mine.yaml", r"There is no task file .*home/mine\.yaml"),
    ],
)
def test_what_is_no_task(given: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("folder", "home/folder"):
        Path(folder).mkdir(parents=True)
    Path("rows.json").write_text("[]")
    with pytest.raises(InputError, match=message):
        load_task(given)


def test_the_home_folder_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files = {"train": "~/rows.jsonl"}
    write_task(tmp_path / "tasks" / "mine.yaml", dataset_kwargs={"data_files": files}, validation_split=None)
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": 1}\n')
    task = load_task("~/tasks/mine.yaml")
    assert len(task.load("train")) == len(task.load("train", "~")) == 1


def test_sst2_prompt() -> None:
    example = load_task("sst2").render({"sentence": "a fine film . ", "label": 0}, 0, "train")
    assert example.prompt == "Review: a fine film .\nSentiment:"
    assert example.choices == (" negative", " positive")
    assert example.completion == " negative"


@pytest.mark.parametrize("name", REAL)
def test_real_rows(name: str, read: Callable[[str, str], Any]) -> None:
    train, validation, labels = REAL[name]
    assert len(read(name, "train")) == train
    data = read(name, "validation")
    assert len(data) == validation
    assert labels is None or Counter(data["label"]) == labels
    assert -1 not in data["label"]
    assert len(set(data["id"])) == validation
    assert all(row["completion"] == row["choices"][row["label"]] for row in data)


@pytest.mark.parametrize("name", [name for name in PROMPTS if not name.startswith(WITHOUT_FILES)])
def test_every_prompt_renders_cleanly(name: str, data_dir: Path) -> None:
    task = load_task(name)
    folder = data_dir / FOLDERS.get(name.split("_")[0], "")
    data = task.load("validation", data_dir=folder, limit=200, seed=0)
    for row in data:
        # A prompt that ends in white space would put two spaces before the answer.
        assert row["prompt"] == row["prompt"].strip()
        for choice in row.get("choices", [row["completion"]]):
            assert choice.startswith(" ")
            assert choice == f" {choice.strip()}"
    assert len(set(data["prompt"])) > 0.75 * len(data)


@pytest.mark.parametrize("name", ["wsc", "wsc_refers"])
def test_wsc_marks_the_pronoun(name: str, read: Callable[[str, str], Any]) -> None:
    for split in ("train", "validation"):
        for prompt in read(name, split)["prompt"]:
            if name == "wsc":
                pronoun = re.search(r"Does \*(.+)\* stand", prompt)[1]
                assert prompt.count(f"*{pronoun}*") == 2
            else:
                window, pronoun = re.search(r'In the words "(.+)", the pronoun "(.+)" refers', prompt).groups()
                assert pronoun in window


def test_stsb_target_and_nearest_step(read: Callable[[str, str], Any]) -> None:
    data = read("stsb", "train")
    gaps = [abs(float(row["completion"]) - row["target"]) for row in data]
    assert max(gaps) <= 0.1 + 1e-9
    scores = load_task("stsb").compute_metrics(data["label"], data["label"], rows=data)
    assert 0.999 < scores["pearson"] < 1


def test_record_answers(read: Callable[[str, str], Any]) -> None:
    data = read("record", "validation")
    assert all(row["completion"].strip() in row["answers"] for row in data)
    assert any(len(row["answers"]) > 1 for row in data)
    several = next(row for row in data if len(row["answers"]) > 1)
    other = several["choices"].index(f" {several['answers'][1]}")
    assert other != several["label"]
    scores = load_task("record").compute_metrics(
        [other], [several["label"]], rows={k: [v] for k, v in several.items()}
    )
    assert scores == {"em": 1.0, "token_f1": 1.0}


def test_multirc_questions(read: Callable[[str, str], Any]) -> None:
    task = load_task("multirc")
    data = read("multirc", "validation")
    assert len(set(data["group"])) == 953
    no = task.compute_metrics([0] * len(data), data["label"], rows=data)
    right = sum(not any(labels) for labels in by_group(data).values())
    assert no == {"f1": 0.0, "em": pytest.approx(right / 953)}


def by_group(data) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row in data:
        groups.setdefault(row["group"], []).append(row["label"])
    return groups


def test_clinc150_names_of_intents_and_words_belong_together() -> None:
    task = load_task("clinc150")
    names = task.config["metadata"]["local"]["labels"]
    assert list(names.values()) == [index for index in range(151) if index != 42]
    words = [choice.strip() for choice in task.choices]
    same = sum(name.replace("_", " ") == word for name, word in zip(names, words, strict=True))
    assert same > 100  # the others are written out; one that is shifted would leave none
    assert not [(a, b) for a in words for b in words if a != b and b.startswith(a)]


def test_clinc150_names_are_those_of_the_file(data_dir: Path) -> None:
    content = json.loads((data_dir / "CLINC150" / "data_full.json").read_text(encoding="utf-8"))
    names = load_task("clinc150").config["metadata"]["local"]["labels"]
    assert {intent for _, intent in content["train"]} == {intent for _, intent in content["test"]} == set(names)


def test_instruct(data_dir: Path) -> None:
    task = load_task("instruct")
    data = task.load("train", data_dir=data_dir / "instruct-rasbt")
    assert data.column_names == ["id", "prompt", "completion"]
    assert len(data) == 967
    assert data["prompt"][0].endswith("tense.\n\nShe sings in the choir.\n\nAnswer:")
    assert data["prompt"][1] == "Define the term 'osmosis'.\n\nAnswer:"
    assert task.compute_metrics(data["completion"], data["completion"]) == {"rouge_l": 1.0}
    with pytest.raises(InputError, match=r"'train.jsonl' of .* Give the folder that holds it as data_dir"):
        task.load("train", data_dir=data_dir)
