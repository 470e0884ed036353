"""The model card: what the hub reads of it, what people read of it, and what never stands in it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sinkd_llm.errors import InputError
from sinkd_llm.report.model_card import CardFacts, facts_of_files, is_ours, render_card, write_card
from sinkd_llm.report.model_files import ModelFiles
from sinkd_llm.report.page import RunFiles, render_report
from sinkd_llm.report.predictions import EVALUATION
from sinkd_llm.report.results import ResultRow
from sinkd_llm.report.templates import fenced, in_markdown
from sinkd_llm.secrets import recordable, recordable_command
from tests.support.results import ROWS, record, whole_run

TASK = {
    "task": "mine",
    "dataset_path": "owner/data",
    "doc_to_text": "Text: {{text}}\nAnswer:",
    "doc_to_choice": ["class 0", "class 1", "class 2"],
    "metadata": {"description": "Which class?", "license": "CC BY 4.0", "citation": "Somebody 2020."},
}
FACTS = CardFacts(TASK, ("text",), ModelFiles("SequenceClassification"))
OBJECTIVE = {"alpha": 0.9, "divergence": "kl", "temperature": 2.0, "sinkhorn_weight": 0.8}


def files(**settings: object) -> RunFiles:
    run = whole_run()
    every = {"model_name_or_path": "owner/base", "teacher_model_name_or_path": "~/models/large", **settings}
    return replace(run, record=replace(run.record, settings=dict(OBJECTIVE), all_settings=every))


def test_the_header_is_what_a_hub_reads() -> None:
    data = ModelCard(render_card("folder", files(), FACTS)).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("owner/base", "finetune", "transformers")
    assert (data.datasets, data.pipeline_tag, data.license) == (["owner/data"], "text-classification", None)
    assert data.model_name == "folder"
    student = whole_run().record.rows[-1]
    assert {one.metric_name: one.metric_value for one in data.eval_results} == student.metrics
    assert data.eval_results[0].metric_type == "accuracy"
    assert {one.dataset_type for one in data.eval_results} == {"owner/data"}


def test_a_header_names_nothing_that_is_on_no_hub() -> None:
    facts = replace(FACTS, task={**TASK, "dataset_path": "csv"}, model=ModelFiles("CausalLM", True))
    data = ModelCard(render_card("folder", files(model_name_or_path="~/models/base"), facts)).data
    assert (data.base_model, data.datasets, data.library_name) == (None, None, "peft")
    assert ModelCard(render_card("folder", RunFiles(record([])), CardFacts())).data.eval_results is None


def test_what_people_read() -> None:
    card = render_card("folder", files(), FACTS)
    for text in (
        "owner/base, distilled on sst2 from large. The student scores acc 0.720",
        "The loss: 0.1 × cross-entropy + 0.9 × KL at temperature 2 + 0.8 × SinKD. 20 steps in 2 min 5 s on 512",
        "Its licence, as the task file states it: CC BY 4.0. Somebody 2020.",
        "| acc | 0.800 \\[0.650, 0.780\\] | 0.720 \\[0.650, 0.780\\] |",
        "| latency p50 | 4.20 ms | 4.20 ms |",
        "expected calibration error",
        "Lost: the teacher is right, the student is not: 1",
        "Weakest classes, by F1: class",
        "Most frequent confusions: class",
        "Text: {{text}}\nAnswer:",
        "@inproceedings{cui2024sinkd",
        'student.predict(["a first text", "a second text"])',
    ):
        assert text in card
    assert "The text of row" not in card  # rows of the data are nobody's to publish
    assert "student before" not in card


def test_a_calibrated_student_has_no_scores_of_other_probabilities() -> None:
    every = ("log_loss", "brier", "ece", "ece_adaptive")
    before, after = (render_card("folder", files(), replace(FACTS, calibration=said)) for said in ("", "It is."))
    for card, kept in ((before, True), (after, False)):
        data = ModelCard(card).data
        assert [name in {one.metric_name for one in data.eval_results} for name in every] == [kept] * 4
        assert [f"| {in_markdown(name)} |" in card for name in every] == [kept] * 4
        assert "| acc | 0.800" in card
    assert r"Left out, as they were taken before the calibration: log\_loss, brier, ece, ece\_adaptive." in after
    assert "Left out" not in before


def test_without_a_teacher_a_card_speaks_of_a_model() -> None:
    run = files()
    own = replace(run.record, command="finetune", rows=[replace(run.record.rows[-1], name="after")], layers=None)
    alone = {name: one for name, one in run.answers.items() if name == EVALUATION}
    card = render_card("folder", replace(run, record=own, answers=alone), FACTS)
    assert "| | model |" in card
    assert "Rows that the model got wrong" in card
    assert "student" not in card.replace("student.predict", "").replace("student = load_student", "").replace(
        "import load_student", ""
    )


def test_a_card_of_a_student_on_a_hub_loads_it_from_there() -> None:
    card = render_card("folder", files(push_to_hub=True, hub_model_id="me/mine"), FACTS)
    assert 'load_student(snapshot_download("me/mine"))' in card
    assert "\n# mine\n" in card


def test_texts_are_neither_html_nor_markdown() -> None:
    run = whole_run(hostile=True)
    task = {**TASK, "doc_to_text": "```\n<script>", "metadata": {"description": "<b>|`*_[x](y)\n# z\x1b"}}
    card = render_card("folder", run, replace(FACTS, task=task))
    assert "\\_\\[x\\](y) \\# z\\\\x1b" in card
    for line in card.splitlines():
        # Of the prompt, and of the code with it, in blocks that it cannot end.
        assert "<script>" not in line or line in ("<script>", r"text = '```\n<script>'")
    assert "````python\nimport torch" in card
    assert fenced("```\n<script>") in card
    assert fenced("a").startswith("```\n")
    assert fenced("````").startswith("`````\n")


def test_a_card_is_written_over_until_somebody_changes_it(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert write_card(tmp_path, files(), FACTS)
    assert is_ours(card.read_text(encoding="utf-8"))
    assert write_card(tmp_path, RunFiles(record(ROWS)), FACTS)
    changed = card.read_text(encoding="utf-8").replace("distilled", "made")
    card.write_text(changed, encoding="utf-8")
    assert not write_card(tmp_path, files(), FACTS)
    assert card.read_text(encoding="utf-8") == changed
    card.write_text("## Uses\n\n[More Information Needed]\n")  # PEFT's template
    assert write_card(tmp_path, files(), FACTS)


@pytest.mark.parametrize(
    ("files_there", "loads_as", "adapter"),
    [
        ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, "SequenceClassification", False),
        ({"config.json": {"architectures": ["T5ForConditionalGeneration"]}}, "Seq2SeqLM", False),
        ({"config.json": {"architectures": ["GPT2LMHeadModel"]}, "adapter_config.json": {}}, "CausalLM", False),
        ({"adapter_config.json": {"task_type": "SEQ_CLS"}}, "SequenceClassification", True),
        ({"adapter_config.json": {"task_type": None}}, "", True),
        ({"config.json": {}}, "", False),
    ],
)
def test_what_loads_a_folder(files_there: dict[str, object], loads_as: str, adapter: bool, tmp_path: Path) -> None:
    for name, content in files_there.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = facts_of_files(tmp_path)
    assert found is not None
    assert (found.model.loads_as, found.model.is_adapter) == (loads_as, adapter)
    assert render_card("folder", RunFiles(record([ResultRow("student")])), found).startswith("---\n")


def test_a_folder_without_a_model_has_no_card(tmp_path: Path) -> None:
    assert facts_of_files(tmp_path) is None
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match="is damaged"):
        facts_of_files(tmp_path)


SECRET, HOME = "hf_" + "aB3" * 11, "/home/user"
HIDDEN = [
    *(SECRET, f"{HOME}/data", Path(f"{HOME}/data"), [f"{HOME}/a", SECRET], f"a=1,api_key={SECRET}"),
    *("https://user:hunter2@host/x?token=hunter2", "Authorization: Bearer hunter2", f'{{"token": "{SECRET}"}}'),
    *({"env": {"HF_TOKEN": "hunter2", "cache": HOME}}, {"headers": {"Authorization": "Bearer hunter2"}}),
]


@pytest.mark.parametrize("value", HIDDEN, ids=lambda value: type(value).__name__)
def test_no_setting_tells_a_secret_or_a_home(value: object, tmp_path: Path) -> None:
    from trl import ModelConfig

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.runs.record import every_setting
    from sinkd_llm.training.config import SinKDConfig

    every = every_setting((TaskArguments(task="sst2"), SinKDConfig(str(tmp_path), report_to="none"), ModelConfig()))
    # Whatever a setting is meant to hold.
    settings = {**dict.fromkeys(every, value), "hub_token": "hunter2", "teacher_api_key": "hunter2"}
    words = [part for name, one in settings.items() for part in (f"--{name}", str(one))]
    whole = replace(
        record(ROWS, recordable_command(["sinkd", "distill", *words])),
        settings=recordable(settings),
        all_settings=recordable(settings),
    )
    whole.write(tmp_path)
    told = {
        "results.json": (tmp_path / "results.json").read_text(encoding="utf-8"),
        "the page": render_report(RunFiles(whole)),
        "the card": render_card("folder", RunFiles(whole), FACTS),
    }
    for where, text in told.items():
        for hidden in (SECRET, "hunter2", HOME, "hub_token"):
            assert hidden not in text, where
