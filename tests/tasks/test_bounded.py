"""Templates that would never end, or fill the memory, end in time with a message; others are not slowed down."""

import threading
import time

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import bounded, sandbox
from sinkd_llm.tasks.template import Template

ROW = {"text": "a" * 40 + "!", "n": 3, "parts": ["x", "y"], "null": None}


def template(source: str) -> Template:
    return Template(source, "doc_to_text", "mine.yaml")


def check_and_render(mine: Template) -> None:
    mine.check()
    mine.render(ROW, "row 0")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1.0)


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "source",
    [
        LOOPS + "x",
        "{{text | regex_replace('(a+)+$', '')}}",
        "{% macro f() %}{% for a in range(99999) %}{{g()}}{% endfor %}{% endmacro %}"
        "{% macro g() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}{{f()}}",
        "{{range(99999) | map('string') | map('center', 99999) | list | length}}",
        "{{'a' * 10**10}}",
        "{{'a' * 10000000000}}",
        "{{10 ** 10000000000}}",
        "{{'%9999999999d' % 1}}",
        "{{'{:9999999999}'.format(1)}}",
        "{{text | center(9999999999)}}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
        "{{ns.x | length}}",
        "{{[0] * 10**10}}",
        "{{'x'.ljust(9999999999)}}",
        "{{'ab'.replace('', 'c' * 99999).replace('', 'c' * 99999) | length}}",
    ],
)
@pytest.mark.parametrize("in_thread", [False, True])
def test_templates_without_end(source: str, in_thread: bool, quick: None) -> None:
    caught: list[BaseException] = []

    def render() -> None:
        try:
            template(source).check()
            template(source).render(ROW, "row 7")
        except Exception as error:
            caught.append(error)

    start = time.monotonic()
    if in_thread:
        thread = threading.Thread(target=render)
        thread.start()
        thread.join()
    else:
        render()
    assert time.monotonic() - start < 30  # the start of a process on a busy machine, and a second
    assert isinstance(caught[0], InputError)
    assert "doc_to_text in mine.yaml" in str(caught[0])
    assert "row 7" in str(caught[0])


def test_the_next_row_is_rendered_after_one_without_end(quick: None) -> None:
    with pytest.raises(InputError, match="runs for more than 1 seconds on row 0; drop the loop"):
        template(LOOPS).render(ROW, "row 0")
    assert template("{% for part in parts %}{{part}}{% endfor %}").render(ROW, "row 1") == "xy"


def test_a_text_without_measure() -> None:
    with pytest.raises(InputError, match=r"writes 20,000,000 characters, more than 10,000,000, on row 0"):
        template("{% for i in range(200) %}{{'a' * 100000}}{% endfor %}").render(ROW, "row 0")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for p in parts %}{{null}}{% endfor %}", "has no text for row 0: its column 'null' is null"),
        ("{{null | tojson}}", "has no text for row 0: its column 'null' is null"),
        ("{% for p in parts %}{{missing}}{% endfor %}", "The column 'missing', .* is not in row 0"),
        ("{% for p in parts %}{{p.foo}}{% endfor %}", "fails on row 0: .*no attribute 'foo'"),
        ("{% for p in parts %}{{p + 1}}{% endfor %}", "fails on row 0: TypeError"),
        ("{% for p in parts %}{{p.__class__}}{% endfor %}", "is refused"),
        ("{% for p in parts %}{{'{0.__class__}'.format(p)}}{% endfor %}", "is refused"),
    ],
)
def test_failures_are_told_as_those_of_other_templates(source: str, message: str) -> None:
    mine = template(source)
    with pytest.raises(InputError, match=message):
        check_and_render(mine)


@pytest.mark.parametrize(
    ("source", "bounded_by_row"),
    [
        ("Review: {{text | trim}}\n", True),
        ("{{(label | float * 5) | round | int}}", True),
        ("{{a ~ ' ' ~ b}}{{a.split() | join(' ')}}", True),
        ("{{a | replace('long', 'short')}}", True),
        ("{{['no', 'yes'][label]}}", True),
        ("{{a * b}}", False),
        ("{{a ** 2}}", False),
        ("{{a | replace('', 'xxxxxx')}}", False),
        ("{{a | join(b)}}", False),
        ("{{a * 1000 * 1000}}", False),
        ("{% set b = a ~ a %}" * 20 + "{{b}}", False),
        ("{% for c in a %}{{c}}{% endfor %}", False),
        ("{{range(9)}}", False),
    ],
)
def test_what_runs_in_this_process(source: str, bounded_by_row: bool) -> None:
    assert sandbox.is_bounded(source) == bounded_by_row


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 3_000 + "1" + ")" * 3_000 + "}}",
        "{% if n %}" * 200 + "x" + "{% endif %}" * 200,
        "{{" + "9" * 5_000 + "}}",
    ],
)
def test_sources_that_are_too_much_for_python_are_syntax_errors(source: str) -> None:
    with pytest.raises(InputError, match="Template syntax error in doc_to_text"):
        template(source).check()
