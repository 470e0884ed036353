"""`sinkd recipes`: list the recipes that come with the package, or print one, to run it or to change a copy."""

import re
from collections.abc import Sequence
from pathlib import Path

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.printing import show_wrapped
from sinkd_llm.cli.shipped import recipes
from sinkd_llm.errors import InputError, nearest, shown
from sinkd_llm.terminal import show


def main(argv: Sequence[str]) -> int:
    """Run `sinkd recipes list` (the default) or `sinkd recipes show NAME`."""
    parser = CommandParser(prog="sinkd recipes", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="list|show")
    commands.add_parser("list", help="all recipes, the command of each and what it does")
    show_parser = commands.add_parser("show", help="the text of a recipe")
    show_parser.add_argument("name", help="its name")
    args = parser.parse_args(list(argv))
    known = recipes()
    if args.command == "show":
        if args.name not in known:
            raise InputError(
                f"there is no recipe {shown(args.name)}.{nearest(args.name, list(known), 0.6)} 'sinkd recipes' lists "
                "them."
            )
        show(known[args.name].read_text(encoding="utf-8").rstrip("\n"))
        return 0
    for name, file in known.items():
        command, what = about(file)
        show(f"{name}  ({command})")
        show_wrapped(f"    {what}", indent="    ")
    show_wrapped(
        "Run one with its name, and any flag that overrides it: sinkd finetune --config NAME --data_dir data. "
        "'sinkd recipes show NAME > mine.yaml' makes a copy to change. A file called NAME wins over the recipe."
    )
    return 0


def about(file: Path) -> tuple[str, str]:
    """
    The command that a recipe is for and what it does, from the comment that it begins with.

    Args:
        file (`Path`): the recipe.
    """
    comment = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("#").strip())
    commands = re.findall(rf"sinkd (\w+) --config \S*{re.escape(file.stem)}", " ".join(comment))
    words = []
    for line in comment:
        if not line or ("sinkd " in line and "--config" in line):
            break
        words.append(line)
    return ", ".join(dict.fromkeys(commands)), " ".join(words).removesuffix(":").removesuffix(".") + "."
