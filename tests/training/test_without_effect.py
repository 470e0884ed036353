"""Settings that nothing reads are said, and what may be meant in two ways is refused."""

import logging

import pytest
from datasets import Dataset

from sinkd_llm import SinKDConfig
from sinkd_llm.errors import InputError
from sinkd_llm.objectives import DistillationObjective, StateSettings, TransportedSettings
from sinkd_llm.training.given import check_arguments
from sinkd_llm.training.prepare import check_over_choices
from sinkd_llm.training.settings.without_effect import without_effect
from sinkd_llm.training.signal import check_choice_rows

ONE_ROW = {"per_device_train_batch_size": 1, "transported_weight": 1.0, "sinkhorn_weight": 0.0}
ONE_ROW_SAID = (
    "per_device_train_batch_size is 1, and over the answer choices every row is then a transport problem by itself: "
    "{} row by row, the control without transport. Set it to more for transport."
)


def settings(folder, **changes):
    return SinKDConfig(str(folder), use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"queue_size": 100}, ["queue_size has no effect: queue_weight is 0."]),
        (
            {"queue_size": 100, "queue_temperature": 0.5},
            ["queue_size and queue_temperature have no effect: queue_weight is 0."],
        ),
        ({"queue_size": 100, "queue_weight": 1.0}, []),
        ({"transported_anchor": 0.5}, ["transported_anchor has no effect: transported_weight is 0."]),
        (
            {"layer_selection_rows": 8, "layer_selection": "0,1"},
            [
                "layer_selection_rows has no effect: layer_selection is 0,1, which looks at no rows (influence and "
                "greedy do)."
            ],
        ),
        ({"layer_selection_rows": 8, "layer_selection": "influence", "student_layers": 2}, []),
        ({**ONE_ROW, "signal": "choices"}, [ONE_ROW_SAID.format("transported compares")]),
        (
            {**ONE_ROW, "teacher_file": "x.csv", "sinkhorn_weight": 0.8},
            [ONE_ROW_SAID.format("sinkhorn and transported compare")],
        ),
        # Over tokens a row of the data has several, and with signal auto it may be tokens.
        ({**ONE_ROW}, []),
        ({**ONE_ROW, "signal": "choices", "per_device_train_batch_size": 2}, []),
        ({**ONE_ROW, "signal": "choices", "transport_accumulation": True, "gradient_accumulation_steps": 4}, []),
        # The first is said of the rows, the second compares each row with its own.
        ({**ONE_ROW, "signal": "choices", "transport_scope": "sequence"}, []),
        ({**ONE_ROW, "signal": "choices", "transported_anchor": 0.0}, []),
    ],
)
def test_what_nothing_reads_is_said(tmp_path, changes, sentences, caplog):
    args = settings(tmp_path, **({} if "teacher_file" in changes else {"teacher_model_name_or_path": "x"}), **changes)
    assert without_effect(args) == sentences
    with caplog.at_level(logging.WARNING, "sinkd_llm"):
        check_arguments(args, None, None, None)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("sinkd_llm")] == sentences


def test_every_setting_of_an_optional_term_is_looked_at(tmp_path):
    args, others = settings(tmp_path), {"queue_weight", "hidden_weight", "transported_weight"}
    for kind in (StateSettings, TransportedSettings):
        for name, default in vars(kind()).items():
            if name not in others:
                setattr(args, name, "identity" if isinstance(default, str) else default * 0.5)
                assert any(name in sentence for sentence in without_effect(args)), name


def test_one_index_may_be_meant_as_a_number(tmp_path):
    for given in (2, "2", [2]):
        with pytest.raises(InputError, match=r"lists one layer, .* For 2 layers set student_layers to 2"):
            settings(tmp_path, layer_selection=given)
    assert settings(tmp_path, layer_selection="2", student_layers=1).layer_selection == "2"


def test_where_no_row_has_a_label_no_weight_of_labels_is_advised():
    free = DistillationObjective(alpha=1.0, divergence="none", sinkhorn_weight=1.0)
    assert "Learn from the labels, too (alpha below 1)" in free.lacks(labels=True)
    said = free.lacks(labels=False)
    assert "No row has a label: label some" in said
    assert "alpha" not in said


def test_the_published_term_alone_over_rows_without_labels_is_warned_of(tmp_path, caplog):
    rows = Dataset.from_dict(
        {"prompt": ["a", "b"], "completion": ["", ""], "choices": [[" x", " y"]] * 2, "label": [-1, -1]}
    )
    alone = {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 1.0}
    said = "Nothing beside sinkhorn says which class is which"
    with caplog.at_level(logging.WARNING, "sinkd_llm"):
        check_choice_rows(settings(tmp_path, **alone, transport_scope="sequence"), rows)
        check_choice_rows(settings(tmp_path, **{**alone, "divergence": "kl", "alpha": 1.0}), rows)
        assert said not in caplog.text
        check_choice_rows(settings(tmp_path, **alone), rows)
    assert said in caplog.text


def test_hidden_states_over_rows_without_labels_blame_the_rows(tmp_path):
    args = settings(tmp_path, teacher_model_name_or_path="x", hidden_weight=1.0)
    with pytest.raises(
        InputError, match=r"because some rows have no label.*train on rows for which that does not hold"
    ) as found:
        check_over_choices(args, "some rows have no label, and so no answer with tokens")
    assert "tokenizer" not in str(found.value)
    with pytest.raises(InputError, match="use a teacher with the student's tokenizer and head"):
        check_over_choices(args)
