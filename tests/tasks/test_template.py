"""Templates: the same text as plain Jinja2 under lm-evaluation-harness's settings, inside a sandbox."""

import jinja2
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.template import Template

ROW = {"text": " a “b” & <c> ", "n": 3, "parts": ["x", "y"], "answer": {"label": 1}}


def template(source: str) -> Template:
    return Template(source, "doc_to_text", "mine.yaml")


@pytest.mark.parametrize(
    "source",
    [
        "{{text}}\n",
        "{{text | trim}}: {{n + 1}}",
        "{% for part in parts %}{{loop.index}}. {{part}}\n{% endfor %}",
        "{{answer.label}} {{answer['label']}} {{['no', 'yes'][answer.label]}}",
        "{% if missing is defined %}{{missing}}{% else %}none{% endif %}",
        "{{text.split() | join(' ')}}",
        "{# a remark #}{% set m = n * 2 %}{{m}}",
        "plain words",
    ],
)
def test_same_text_as_plain_jinja(source: str) -> None:
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    mine = template(source)
    mine.check()
    assert mine.render(ROW, "row 0") == plain.from_string(source).render(**ROW)


def test_regex_replace() -> None:
    assert template("{{text | regex_replace('[“”]', '') | trim}}").render(ROW, "row 0") == "a b & <c>"
    assert template("{{'aaa' | regex_replace('a', 'b', 2)}}").render(ROW, "row 0") == "bba"


def check_and_render(mine: Template) -> str:
    mine.check()
    return mine.render(ROW, "row 0")


@pytest.mark.parametrize(
    "source",
    [
        "{{text.__class__}}",
        "{{''.__class__.__mro__}}",
        "{{text | attr('__class__')}}",
        "{{text['__class__']}}",
        "{{parts.append('z')}}",
        "{{cycler.__init__.__globals__}}",
        "{{self._TemplateReference__context}}",
        "{% for f in [text.format] %}{{f.__self__}}{% endfor %}",
        "{{'{0.__class__}'.format(text)}}",
    ],
)
def test_internals_are_refused(source: str) -> None:
    mine = template(source)
    with pytest.raises(InputError) as caught:
        check_and_render(mine)
    assert "doc_to_text in mine.yaml" in str(caught.value)
    assert ROW["parts"] == ["x", "y"]


def test_syntax_error_names_key_file_and_line() -> None:
    with pytest.raises(InputError) as caught:
        template("one\ntwo {{text\n").check()
    message = str(caught.value)
    assert "doc_to_text" in message
    assert "mine.yaml" in message
    assert "line 3" in message or "line 2" in message


def test_unknown_filter_is_a_syntax_error() -> None:
    with pytest.raises(InputError, match="No filter named 'strip'"):
        template("{{text | strip}}").check()


def test_missing_column_names_row_and_column() -> None:
    with pytest.raises(InputError) as caught:
        template("{{txt}}").render(ROW, "line 7 of train.jsonl")
    message = str(caught.value)
    assert "'txt'" in message
    assert "line 7 of train.jsonl" in message
    assert "Did you mean 'text'?" in message


def test_failing_expression_names_the_row() -> None:
    with pytest.raises(InputError, match="fails on row 0: TypeError"):
        template("{{text + n}}").render(ROW, "row 0")
    with pytest.raises(InputError, match=r"fails on row 0: .*no attribute 'gold'"):
        template("{{answer.gold}}").render(ROW, "row 0")
