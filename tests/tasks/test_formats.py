"""Readers of the benchmarks that are no table: what their files mean, and that a broken one is named with its line."""

from functools import partial

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.formats import read_clinc, read_multirc, read_record, read_trec

TEST = partial(read_clinc, member="test")


def test_trec_is_latin1_with_a_stray_byte_or_utf8(write_file) -> None:
    rows = read_trec(write_file(b"DESC:def What is a caf\xe9 ?\n\nLOC:city A sister\xf0city : where ?\n"))
    assert rows.rows == [
        {"text": "What is a café ?", "coarse_label": "DESC", "fine_label": "DESC:def"},
        {"text": "A sister city : where ?", "coarse_label": "LOC", "fine_label": "LOC:city"},
    ]
    assert rows.where(1).startswith("line 3 of")
    assert read_trec(write_file("DESC:def What is a café ?\n")).rows == rows.rows[:1]


def test_clinc_takes_one_split_of_the_file(write_file) -> None:
    content = '{"train": [["pay it", "pay_bill"]], "oos_train": [],\n "test": [["hi", "greeting"], ["bye ", "bye"]]}'
    rows = read_clinc(write_file(content), "test")
    assert rows.rows == [{"text": "hi", "intent": "greeting"}, {"text": "bye ", "intent": "bye"}]
    assert rows.where(1).startswith("row 1 of 'test' in ")
    with pytest.raises(InputError, match="split 'oos_train' has no rows"):
        read_clinc(write_file(content), "oos_train")


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_trec, "", "has no rows"),
        (read_trec, "DESC What ?\n", "Line 1 of .* is 'DESC What .', not COARSE:fine and a question"),
        (TEST, "", "is not valid JSON"),
        (TEST, '{"test": [["hi", "greeting"], ["by', "Line 1 of .* is not valid JSON .*cut off"),
        (TEST, '{"train": [["hi", "greeting"]]}', "has no split 'test'; it has 'train'"),
        (TEST, '[["hi", "greeting"]]', "not an object of splits"),
        (TEST, '{"test": {"hi": "greeting"}}', "The split 'test' of .* is {'hi': 'greeting'}, not a list of pairs"),
        (TEST, '{"test": [["hi", "greeting"], ["bye"]]}', r"Row 1 of 'test' in .* is \['bye'\], not a pair"),
        (TEST, '{"test": [["hi", 3]]}', r"Row 0 of 'test' in .* is \['hi', 3\], not a pair"),
        (TEST, '{"test": [["hi", ""]]}', "not a pair of texts"),
        (TEST, '{"test": [], "test": []}', "has the key 'test' twice"),
        (read_multirc, "", "has no rows"),
        (read_multirc, '{"idx": 0}\n', "Line 1 of .* has no 'passage' .a JSON object."),
        (
            read_multirc,
            '{"idx": 0, "passage": {"text": "t", "questions": [3]}}\n',
            "Question 0 on line 1 of .* 'answers'",
        ),
        (read_record, '{"idx": 0, "passage": {"entities": []}, "qas": []}\n', "Line 1 of .* has no 'text' .text."),
        (read_record, '{"idx": 0, "passage": {"text": "t", "entities": []}}\n', "Line 1 of .* has no 'qas' .a list."),
        (read_record, '{"idx": 0, "passage": {"text": "t", "entities": []}, "qas": [{}]}\n', "Query 0 on line 1 of"),
        (
            read_record,
            '{"idx": 0, "passage": {"text": "", "entities": []}, "qas": [{"idx": 0, "query": "", "answers": [{}]}]}\n',
            "Answer 0 to query 0 on line 1 of .* has no 'text'",
        ),
    ],
)
def test_broken_passages(reader, content: str, message: str, write_file) -> None:
    with pytest.raises(InputError, match=message):
        reader(write_file(content))
