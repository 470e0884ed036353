"""`sinkd objectives` shows all that the table has, on a terminal of 80 columns."""

import pytest

from sinkd_llm.cli import main
from sinkd_llm.objectives.catalogue import NEEDS, advice, parts


def test_every_part_every_need_and_every_advice_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["objectives"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(printed.out.split())
    for part in parts():
        assert f"{part.name} = {part.equation} with {part.setting}; needs {', '.join(part.needs)}" in words
        assert part.purpose in words
    for one in advice():
        assert f"{one.data} → {', '.join(one.parts)} {one.settings} {one.remark}" in words
    for name, meaning in NEEDS.items():
        assert f"{name}: {meaning}" in words


def test_it_takes_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["objectives", "--task", "sst2"]) == 2
    assert "--task" in capsys.readouterr().err
