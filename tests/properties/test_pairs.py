"""Prompt-completion rows: the tokens that are trained on are the text of the file, or the file is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st

from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.runs import TaskArguments
from sinkd_llm.runs.data import load_run_data
from tests.support import values
from tests.support.properties import attempt, examples

ROLES = st.sampled_from(["user", "assistant", "system", "nobody", "", None, 1])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": values.json_scalars}) | values.json_scalars, max_size=2
)
PLAIN = st.fixed_dictionaries({"prompt": values.texts, "completion": values.texts})
ANY = st.fixed_dictionaries(
    {"prompt": values.json_values | MESSAGES, "completion": values.json_values | MESSAGES},
    optional={
        "label": values.json_scalars,
        "choices": st.lists(values.json_scalars, max_size=3),
        "prompt_ids": values.json_scalars,
        "id": values.json_scalars,
    },
)


def tokenise(rows: Dataset, tokenizer: Any) -> Any:
    return tokenize_dataset(rows, DecoderOnlyTokenizer(tokenizer, Reading(max_length=4_096)))


@examples(40, 160)
@example(rows=[{"prompt": "a", "completion": None}])
@example(rows=[{"prompt": "a", "completion": 3}])
@example(rows=[{"prompt": "a", "completion": "b", "prompt_ids": [1]}])
@example(rows=[{"prompt": "a", "completion": "b", "label": 0}])
@example(rows=[{"prompt": "a", "completion": "b", "choices": ["b", "c"]}])
@given(rows=st.lists(PLAIN, min_size=1, max_size=3) | st.lists(ANY, min_size=1, max_size=3))
def test_files_of_pairs(rows: Any, folder: Callable[[], Path], tiny_tokenizer: Any, count: Any) -> None:
    file = folder() / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = TaskArguments(dataset_name=str(file))
    features, message = attempt(lambda: tokenise(load_run_data(arguments, 0).train, tiny_tokenizer))
    strings = all(isinstance(row[name], str) for row in rows for name in ("prompt", "completion"))
    if message is not None:
        plain = strings and all(row.keys() == {"prompt", "completion"} and row["completion"] for row in rows)
        assert not plain, (rows, message)
        count("refused")
        return
    count("answered")
    assert len(features) == len(rows)
    for row, feature in zip(rows, features, strict=True):
        if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
            read = tiny_tokenizer.decode([*feature["prompt_ids"], *feature["answer_ids"]])
            # Ranked answers are scored, and so trained, without the end of the sequence.
            end = "" if "choices" in rows[0] else "<eos>"
            # An answer stands behind something: behind an empty prompt, that is the end of the text before it.
            begin = "" if row["prompt"] else "<eos>"
            assert read == begin + row["prompt"] + row["completion"] + end, (row, read)
        assert row["completion"] is not None
        assert row["prompt"] is not None


@examples(20, 80)
@given(rows=st.lists(ANY, min_size=1, max_size=3) | st.lists(PLAIN, min_size=1, max_size=3))
def test_data_sets_of_pairs(rows: Any, tiny_tokenizer: Any, count: Any) -> None:
    try:
        dataset = Dataset.from_list(rows)
    except Exception:  # columns that pyarrow cannot hold never reach us
        return
    _, message = attempt(lambda: tokenise(dataset, tiny_tokenizer))
    count("answered" if message is None else "refused")
