"""YAML files that a user writes, read without anything lost: task files and recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sinkd_llm.errors import InputError
from sinkd_llm.values import shown

# Far beyond any task file or recipe, and read in a few seconds at most.
MAX_BYTES = 1_000_000
MAX_DEPTH = 50
# Nodes of a file whose aliases are written out: a few lines of aliases to aliases stand for billions.
MAX_NODES = 200_000
# Longer numbers are neither settings nor labels, and Python refuses to read the very long ones.
MAX_NUMBER = 40


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses what YAML 1.1 would lose or read as something else."""

    what = ""
    refused_tags: Mapping[str, str]

    def refuse(self, node: yaml.Node, reason: str) -> InputError:
        return InputError(f"Line {_number(node.start_mark)} of {self.what} {reason}.")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in self.refused_tags:
            raise self.refuse(node, f"uses {node.tag}, but {self.refused_tags[node.tag]}")
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        try:
            return super().construct_object(node, deep=deep)
        except (InputError, yaml.YAMLError):
            raise
        except Exception as error:  # a tag's constructor fails in the ways of Python's own types
            tag = node.tag.rsplit(":", 1)[-1]
            raise self.refuse(node, f"holds {str(node.value)[:40]!r}, which is no {tag}") from error

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        value = node.value
        if node.tag == "tag:yaml.org,2002:str":
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise self.refuse(node, "holds half of a surrogate pair, which is no character; write it whole")
        elif node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            if len(value) > MAX_NUMBER:
                raise self.refuse(
                    node,
                    f"holds a number of {len(value):,} characters ({value[:20]}…); put text in quotes",
                )
            digits = value.lstrip("+-")
            if ":" in value:
                raise self.refuse(node, f"holds {value}, which YAML reads as a number in base 60; put it in quotes")
            if node.tag.endswith("int") and len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_":
                raise self.refuse(
                    node, f"holds {value}, which YAML reads as a number in base 8; drop the zero or put it in quotes"
                )


# A date stays the text that was written: nothing here takes a date, and a wrong one (2024-13-45) is no error then.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml_mapping(path: Path, what: str, refused_tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """
    The keys and values of a YAML file, with every surprise of YAML as one message that names the line.

    Args:
        path (`Path`): the file.
        what (`str`): what the file is, for messages: `"task file"`, `"recipe"`.
        refused_tags (`Mapping[str, str]`, *optional*): tags such as `!function`, and why each is refused.

    Returns:
        `dict[str, Any]`: text keys to values. Dates stay text.

    Raises:
        InputError: if the file is missing, unreadable, not UTF-8, larger than a megabyte, no YAML, no mapping or more
            than one; for a key that is given twice or is no text, nesting beyond 50 levels, aliases that stand for
            a very large file or for themselves, numbers of more than 40 characters or in base 8 or 60.
    """
    name = f"the {what} {path}"
    text = _read_text(path, what)
    loader = _Loader("")
    try:
        _check_depth(text, name)
        loader.dispose()
        loader = _Loader(text)
        loader.what = name
        loader.refused_tags = refused_tags or {}
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node, loader)
        config = None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"The {what} {path} is not valid YAML{_line(error, text)}: {_problem(error)}.") from error
    except (ValueError, OverflowError) as error:  # an escape that stands for no character, such as \UFFFFFFFF
        mark = loader.get_mark()
        raise InputError(
            f"The {what} {path} is not valid YAML near line {mark.line + 1}: {str(error).rstrip('.')}."
        ) from error
    finally:
        loader.dispose()
    if not isinstance(config, dict):
        raise InputError(
            f"The {what} {path} should hold keys and values, one 'key: value' a line, but it "
            f"{'is empty' if config is None else f'holds a {type(config).__name__}'}."
        )
    for key in config:
        if not isinstance(key, str):
            raise InputError(f"The key {key!r} in {name} is {type(key).__name__}, not text; put it in quotes.")
    return config


def _read_text(path: Path, what: str) -> str:
    try:
        found = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(
            f"There is no {what} {shown(str(path))} ({error.strerror or error}); check the path."
        ) from error
    if not found:
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"There is no {what} {path}: it {kind}; check the path.")
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise InputError(
            f"The {what} {path} cannot be read ({error.strerror or error}); check its permissions."
        ) from error
    if size > MAX_BYTES:
        raise InputError(
            f"The {what} {path} has {size:,} bytes, but at most {MAX_BYTES:,} are read; is it the right file?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"The {what} {path} is not UTF-8 text (line {line}, byte {content[error.start]:#04x}); save it as UTF-8."
        ) from error


def _check_depth(text: str, name: str) -> None:
    """Stops at the first event that lies too deep, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(
                    f"Line {_number(event.start_mark)} of {name} nests more than {MAX_DEPTH} lists and mappings in "
                    "each other; give a flatter file."
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_nodes(root: yaml.Node, loader: _Loader) -> None:
    """Refuses keys that are given twice, and aliases that stand for themselves or for more than a file may hold."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise loader.refuse(node, "holds an alias to itself; write it out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                children = list(node.value)
            elif isinstance(node, yaml.MappingNode):
                _check_keys(node, loader)
                children = [child for pair in node.value for child in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (count := size(root)) > MAX_NODES:
        raise InputError(
            f"The aliases in {loader.what} stand for {count:,} values, but at most {MAX_NODES:,} are read; write out "
            "what is meant."
        )


def _check_keys(node: yaml.MappingNode, loader: _Loader) -> None:
    # Here and not while the mapping is built: by then the keys of a merge (<<) stand among its own.
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            key = loader.construct_object(key_node)
            if key in lines:
                raise loader.refuse(
                    key_node, f"gives the key {key!r} again, after line {lines[key]}; keep one of the two"
                )
            lines[key] = _number(key_node.start_mark)


def _line(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return f" at line {mark.line + 1}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return "" if position is None else f" at line {text.count(chr(10), 0, position) + 1}"


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {_code(error.character)} is not allowed"
    return str(getattr(error, "problem", None) or error).rstrip(".")


def _code(character: int | bytes) -> str:
    return f"{character:#04x}" if isinstance(character, int) else repr(character)


def _number(mark: Any) -> int:
    return int(mark.line) + 1
