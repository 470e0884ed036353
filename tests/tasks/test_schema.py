"""Task files: merging, and a clear word for every wrong key."""

from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import READERS
from sinkd_llm.tasks import Task
from sinkd_llm.tasks.formats import BENCHMARK_READERS
from sinkd_llm.tasks.schema import FORMATS, read_task_file


def test_include_replaces_values_and_keeps_their_origin(write_task, tmp_path: Path) -> None:
    main = write_task("main.yaml", metadata={"version": 1.0, "description": "d"})
    variant = tmp_path / "variant.yaml"
    variant.write_text("include: main.yaml\ntask: variant\nmetadata: {version: 2.0}\n")
    config, origins = read_task_file(variant)
    assert config["task"] == "variant"
    assert config["doc_to_text"] == "Q: {{text}}\nA:"
    assert config["metadata"] == {"version": 2.0}  # replaced as in lm-evaluation-harness, not merged
    assert origins["task"] == variant
    assert origins["doc_to_text"] == main
    assert "include" not in config


def test_later_include_wins(write_task, tmp_path: Path) -> None:
    write_task("one.yaml", doc_to_text="one {{text}}")
    (tmp_path / "two.yaml").write_text('doc_to_text: "two {{text}}"\n')
    (tmp_path / "three.yaml").write_text("include: [one.yaml, two.yaml]\ntask: three\n")
    assert read_task_file(tmp_path / "three.yaml")[0]["doc_to_text"] == "two {{text}}"


def test_null_takes_back_an_included_key(write_task, tmp_path: Path) -> None:
    write_task("main.yaml", test_split="test")
    (tmp_path / "variant.yaml").write_text("include: main.yaml\ntask: variant\ntest_split: null\n")
    assert "test_split" not in read_task_file(tmp_path / "variant.yaml")[0]


def local(**changes):
    return {"folder": "x", "format": "tsv", "files": {"train": "train.tsv"}, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_txt": "x"}, "Unknown key 'doc_to_txt' in .*Did you mean 'doc_to_text'?"),
        ({"local": {}}, "Unknown key 'local' .*belong under metadata"),
        ({"process_docs": "f"}, "process_docs in .* is refused: it runs Python code"),
        ({"use_prompt": "promptsource:x"}, "use_prompt in .* is refused"),
        ({"unsafe_code": True}, "unsafe_code in .* is refused"),
        ({"num_fewshot": 3}, "num_fewshot is 3"),
        ({"doc_to_text": None}, "lacks the key doc_to_text"),
        ({"output_type": None}, "lacks the key output_type; it should be multiple_choice or generate_until"),
        ({"output_type": "loglikelihood"}, "ranks answers .multiple_choice. or generates them"),
        ({"output_type": "generate_until"}, "so doc_to_choice has no use; drop it"),
        (
            {"doc_to_choice": None},
            "lacks the key doc_to_choice; without answer choices, output_type is generate_until",
        ),
        (
            {"output_type": "generate_until", "doc_to_choice": None, "metadata": {"scoring": {"group": "g"}}},
            "so metadata.scoring has no use",
        ),
        (
            {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "acc"}]},
            "Unknown metric 'acc'.* Known metrics: rouge_l, perplexity",
        ),
        ({"metadata": {"scoring": {"groups": "g"}}}, "'groups' under metadata.scoring in .*Did you mean 'group'?"),
        ({"metadata": {"scoring": {"target": 3}}}, "metadata.scoring.target in .* should be text"),
        ({"metadata": {"texts": ["a", "b", "c"]}}, "names one or two columns"),
        ({"metadata": {"texts": []}}, "names one or two columns"),
        ({"metadata": {"texts": ["{{x"]}}, "Template syntax error in metadata.texts"),
        ({"metadata": {"scoring": {"group": "{{x"}}}, "Template syntax error in metadata.scoring.group"),
        (
            {"metadata": {"local": {"folder": "x", "format": "tsv", "files": {}, "incomplete_rows": "keep"}}},
            "incomplete_rows in .* is 'keep'; it can be skip",
        ),
        ({"doc_to_text": ["a"]}, "doc_to_text in .* should be text, but it is"),
        ({"doc_to_target": True}, "doc_to_target in .* should be text or a whole number, but it is True"),
        ({"doc_to_choice": ["no"]}, "gives 1 choices"),
        ({"doc_to_choice": [False, True]}, 'The choice False .* write "yes"'),
        ({"doc_to_choice": ["a", " "]}, "an empty choice"),
        ({"doc_to_choice": ["a", "b", "a"]}, "'a' more than once"),
        ({"doc_to_text": "{{text"}, "Template syntax error in doc_to_text, line 1"),
        ({"metric_list": [{"metric": "accc"}]}, "Unknown metric 'accc'. Did you mean 'acc'?"),
        ({"metric_list": ["acc"]}, "metric_list in .* holds 'acc'"),
        ({"metadata": {"metrics": "f1_macro"}}, "metadata.metrics in .* should be a list"),
        (
            {"metadata": {"local": {"columns": {"text": 3}, "folder": "x", "format": "csv", "files": {}}}},
            "columns.text in",
        ),
        ({"metadata": {"local": {"folderr": "x"}}}, "Unknown key 'folderr' .*Did you mean 'folder'?"),
        ({"metadata": {"local": {"folder": "x"}}}, "metadata.local in .* lacks the key format"),
        (
            {"metadata": {"local": local(files={"train": []})}},
            r"local.files.train in .* is \[\]; give a name",
        ),
        ({"metadata": {"local": local(folder=[1])}}, r"metadata.local.folder in .* is \[1\]; give a name"),
        ({"metadata": {"local": local(columns={"text": [1]})}}, r"metadata.local.columns.text in .* is \[1\]"),
        ({"metadata": {"local": local(column_names=["a", "a"])}}, "column_names in .* has a name twice"),
        (
            {"metadata": {"local": local(format="jsonl", column_names=["a"])}},
            "column_names .* is for files of",
        ),
        (
            {"metadata": {"local": local(format="csv", incomplete_rows="skip")}},
            "incomplete_rows .* tsv, not csv",
        ),
        ({"metadata": {"local": local(members={"train": "a"})}}, "members .* is for files of the format clinc"),
        (
            {"metadata": {"local": local(format="clinc", files={"train": "a.json"}, members={"test": "test"})}},
            "members.train in .* is None; a file of the format clinc has several splits",
        ),
        ({"metadata": {"local": local(labels={"a": True})}}, "labels.a in .* is True; it is the index of a choice"),
        ({"metadata": {"local": local(labels={1: 0, "1": 1})}}, "labels in .* gives '1' twice"),
        ({"metadata": {"labels_are": "indexes"}}, "labels_are in .* is 'indexes'; .* words or indices"),
        ({"metadata": {"metrics": ["token_f1"]}}, "token_f1 .* compares texts, but metadata.scoring"),
        (
            {"doc_to_choice": ["a", "b", "c"], "metric_list": [{"metric": "f1"}]},
            "f1 .* is binary, but .* 3 choices",
        ),
        (
            {"metadata": {"local": {"folder": "x", "format": "xml", "files": {}}}},
            "known formats: tsv, csv, jsonl, trec, clinc, multirc, record",
        ),
    ],
)
def test_wrong_keys(changes, message: str, make_task) -> None:
    with pytest.raises(InputError, match=message):
        make_task(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a\n", "holds a list"),
        ("task: [1\n", "not valid YAML at line 2"),
        ("task: x\nprocess_docs: !function utils.f\n", "Line 2 of .* uses !function"),
        ("task: !!python/object/apply:os.system [ls]\n", "not valid YAML at line 1"),
        ("include: absent.yaml\n", "includes 'absent.yaml', but there is no file"),
        ("include: task.yaml\n", "includes itself"),
    ],
)
def test_broken_task_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Task(path)


def test_keys_without_effect_are_accepted(make_task) -> None:
    task = make_task(fewshot_split="train", should_decontaminate=True, num_fewshot=0, repeats=1, unsafe_code=False)
    assert task.name == "mine"


def test_every_declared_format_has_a_reader() -> None:
    assert set(FORMATS) == {*READERS, *BENCHMARK_READERS}


def test_metric_names(make_task) -> None:
    assert make_task().metric_names == ("acc",)
    ranked = make_task(metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "f1"}])
    assert ranked.metric_names == ("acc", "f1")
    own = make_task(metric_list=[{"metric": "mcc"}], metadata={"metrics": ["f1_macro"]})
    assert own.metric_names == ("mcc", "f1_macro")
    assert own.compute_metrics([0, 1], [0, 1]) == {"mcc": 1.0, "f1_macro": 1.0}
    assert [task.primary_metric for task in (make_task(), ranked, own)] == ["acc", "acc", "mcc"]
