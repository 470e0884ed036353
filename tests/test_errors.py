"""What stands in messages."""

from importlib.metadata import PackageNotFoundError

import pytest

from sinkd_llm.errors import LONGEST_SAID, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("It does not fit.\nSee the manual."), "It does not fit"),
        (ValueError("\n \n  first\tline  \nsecond"), "first line"),
        (ValueError(""), "ValueError"),
        (ValueError("..."), "ValueError"),
        (KeyError("'x'"), "\"'x'\""),
        (ValueError("Validation error for field 'r':\n    no number"), "Validation error for field 'r': no number"),
        (ValueError("1 validation error for Zero\nstage\n  no int"), "1 validation error for Zero stage no int"),
        (RuntimeError("refused hf_" + "a1" * 17 + " by the hub"), "refused *** by the hub"),
        (PackageNotFoundError("DeepSpeed is not installed"), "DeepSpeed is not installed"),
    ],
)  # fmt: skip
def test_the_first_line_of_what_a_library_said(error, line):
    said = first_line(error)
    assert said.startswith(line)
    assert "\n" not in said
    assert not said.endswith(".")


def test_a_long_line_is_cut():
    said = first_line(ValueError("word " * 500))
    assert len(said) <= LONGEST_SAID + 1
    assert said.endswith("…")
