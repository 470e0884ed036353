"""Task files: whatever stands in one, it loads and renders in bounded time, or is refused in one message."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sinkd_llm import load_task
from tests.support import values
from tests.support.properties import attempt, examples
from tests.support.task_files import TASK

ROWS = '{"text": "a good film", "label": 1}\n{"text": "a bad film", "label": 0}\n'
SCHEMA_KEYS = (
    *("include", "dataset_name", "test_split", "target_delimiter", "description", "gen_prefix", "generation_kwargs"),
    *("metadata", "task_alias", "tag", "num_fewshot", "process_docs", "filter_list", "unknown_key"),
)
# Templates that end, that do not, and that are broken.
ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
CATASTROPHE = "{{ ('a' * 40 + 'b') | regex_replace('(a+)+$', 'b') }}"
TEMPLATES = (
    *("{{text}}", "{{ text | trim }}", "{{text.upper()}}", "{{ nothing }}", "{{", "{% if %}", "{{ text[100] }}"),
    *("{{ 1/0 }}", "{% for i in range(3) %}{{ i }}{{ text }}{% endfor %}", "{{ text * 1000000 }}"),
    *("{{ 'a' * 10**10 }}", "{{ range(10**9) | list | length }}", "{{ text | regex_replace('(a+)+$', 'b') }}"),
    *("{{ 10**10**8 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ENDLESS, CATASTROPHE),
    *("{{ text.__class__ }}", "{{ self }}", "{{ cycler.__init__.__globals__ }}", "{% include 'x' %}"),
    *("{{ text | xmlattr }}", "{{ text | center(10**9) }}", "{{ text | indent(10**8) }}", "{{ text | batch(1) }}"),
    "{{ '%1000000000d' | format(1) }}",
)
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
NO_TASK = (
    *("", "[]", "null", "task", "- a\n- b", "a: [", "\x00", "a: b: c", "!!python/object/apply:os.system ['x']"),
    *("{" * 10_000, "[" * 10_000, "a: " + "9" * 6_000, "? [a, b]\n: c", "1: 2", "a: 2020-99-99", "<<: 3"),
    *("&a [*a]", ALIASES, b"\xff\xfe", b"task: \xe9"),
)
VALUES = values.json_values | st.sampled_from(
    ["label", "text", ["a", "b"], ["a", "a"], [], [""], {"x": 1}, 10**40, "{{text}}"]
)
TEMPLATE_KEYS = st.sampled_from(["doc_to_text", "doc_to_target", "doc_to_choice", "description"])


def write(folder: Path, content: str | bytes) -> str:
    (folder / "train.jsonl").write_text(ROWS)
    (folder / "validation.jsonl").write_text(ROWS)
    file = folder / "mine.yaml"
    file.write_bytes(content.encode("utf-8", errors="surrogatepass") if isinstance(content, str) else content)
    return str(file)


def load(name: str, count: Any) -> Any:
    """The rows, or `None` if the file was refused."""
    started = time.process_time()
    data, _ = attempt(lambda: load_task(name).load("train"))
    assert time.process_time() - started < 20, "not bounded"
    count("answered" if data is not None else "refused")
    return data


@examples(60, 240)
@given(key=st.sampled_from([*TASK, *SCHEMA_KEYS]), value=VALUES)
def test_any_value_of_any_key(key: str, value: Any, folder: Callable[[], Path], count: Any) -> None:
    data = load(write(folder(), yaml.safe_dump({**TASK, key: value}, allow_unicode=True)), count)
    if data is not None:
        assert len(data) == 2
        assert all(isinstance(prompt, str) for prompt in data["prompt"])
        assert "None" in str(value) or not any("None" in prompt for prompt in data["prompt"])


@examples(15, 80)
@example(template=ENDLESS, key="doc_to_text")
@example(template=CATASTROPHE, key="doc_to_text")
@given(template=st.sampled_from(TEMPLATES) | values.texts, key=TEMPLATE_KEYS)
def test_templates_end(template: str, key: str, folder: Callable[[], Path], count: Any) -> None:
    data = load(write(folder(), yaml.safe_dump({**TASK, key: template}, allow_unicode=True)), count)
    if data is not None and key == "doc_to_text" and template == "{{text}}":
        assert data["prompt"][0] == "a good film"


@pytest.mark.parametrize("content", NO_TASK, ids=range(len(NO_TASK)))
def test_no_task_file_at_all(content: str | bytes, folder: Callable[[], Path], count: Any) -> None:
    assert load(write(folder(), content), count) is None


@examples(10, 60)
@given(key=st.sampled_from(list(TASK)), value=st.sampled_from(["other", "label", "no"]))
def test_a_key_that_stands_twice_is_refused(key: str, value: str, folder: Callable[[], Path], count: Any) -> None:
    content = yaml.safe_dump(TASK) + yaml.safe_dump({key: value})
    assert load(write(folder(), content), count) is None
