"""YAML as users write it: nothing lost in silence, and every fault one message with its line."""

from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.yaml_files import MAX_BYTES, MAX_DEPTH, read_yaml_mapping


def test_values(write_file) -> None:
    text = "\ufeffa: 1\nb: [x, 'yes', 0.5, null, true]\nc: {1: no, x-y: 0}\nd: 2024-01-01\n"
    text += "e: &e {k: 1}\nf:\n  <<: *e\n  k: 2\n"
    assert read_yaml_mapping(write_file(text), "recipe") == {
        "a": 1,
        "b": ["x", "yes", 0.5, None, True],
        "c": {1: False, "x-y": 0},
        "d": "2024-01-01",  # the text that was written
        "e": {"k": 1},
        "f": {"k": 2},  # a merged key is replaced on purpose
    }


def bomb() -> str:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    return "\n".join(["a0: &a0 [x, x]", *lines])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "Line 3 of the recipe .* gives the key 'a' again, after line 1"),
        ("b:\n  a: 1\n  a: 1\n", "Line 3 of .* gives the key 'a' again, after line 2"),
        ("b: [{a: 1, a: 2}]\n", "Line 1 of .* gives the key 'a' again"),
        ("b: {1: x, true: y}\n", "Line 1 of .* gives the key True again"),
        ("a:\n  " + "[" * 10_000, f"Line 2 of .* nests more than {MAX_DEPTH} lists"),
        ("\n".join(" " * i + "a:" for i in range(500)), "Line 51 of .* nests more than 50"),
        ("a: " + "9" * 5_000, r"Line 1 of .* holds a number of 5,000 characters \(99999999999999999999…\)"),
        ("a: 010\n", "Line 1 of .* holds 010, which YAML reads as a number in base 8"),
        ("a: 12:30\n", "Line 1 of .* holds 12:30, which YAML reads as a number in base 60"),
        ("x: 1\nyes: 1\n", "The key True in the recipe .* is bool, not text"),
        ("x: 1\n? [a]\n: 1\n", "not valid YAML at line 2: found unhashable key"),
        (bomb(), "aliases in the recipe .* stand for .* values, but at most 200,000"),
        ("a: &a [*a]\n", "Line 1 of .* holds an alias to itself"),
        ("a: *b\n", "not valid YAML at line 1: found undefined alias"),
        ("a: 1\n---\nb: 1\n", "not valid YAML at line 2: but found another document"),
        ("a:\n\t- b\n", "not valid YAML at line 2"),
        ("a: x\0y\n", "not valid YAML at line 1: the character 0x00 is not allowed"),
        ('a: "\\ud800"\n', "Line 1 of .* holds half of a surrogate pair"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML near line 1"),
        ("a: !!timestamp 2024-99-99\n", "Line 1 of .* holds '2024-99-99', which is no timestamp"),
        ("a: !!bool maybe\n", "Line 1 of .* holds 'maybe', which is no bool"),
        ("a: !!int x\n", "Line 1 of .* holds 'x', which is no int"),
        ("a: 1\nb: !run x\n", "Line 2 of .* uses !run, but it runs code"),
        ("a: !!python/name:os.system\n", "not valid YAML at line 1: could not determine a constructor"),
        ("", "holds a list|is empty"),
        ("- a\n", "holds a list"),
        ("a: caf\xe9\n".encode("latin1"), r"not UTF-8 text \(line 1, byte 0xe9\)"),
        ("a: b\n".encode("utf-16"), "not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), "has 1,000,001 bytes"),
    ],
)
def test_faults_are_one_message_with_the_line(content: str | bytes, message: str, write_file) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_yaml_mapping(write_file(content), "recipe", {"!run": "it runs code"})
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no recipe .*absent: it does not exist"):
        read_yaml_mapping(tmp_path / "absent", "recipe")
    with pytest.raises(InputError, match="it is a folder"):
        read_yaml_mapping(tmp_path, "recipe")
