"""`sinkd objectives`: which loss for which data, and all parts that a loss can have."""

from collections.abc import Sequence

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.printing import show_wrapped
from sinkd_llm.terminal import show


def main(argv: Sequence[str]) -> int:
    """Run `sinkd objectives`, which takes no flags."""
    CommandParser(prog="sinkd objectives", description=__doc__).parse_args(list(argv))
    from sinkd_llm.objectives.catalogue import NEEDS, advice, parts  # after --help, for it waits for torch

    show("Data like this → a loss like that, as a recipe has it\n")
    for one in advice():
        show_wrapped(f"{one.data} → {', '.join(one.parts)}")
        for text in (one.settings, one.remark):
            show_wrapped(f"    {text}", indent="    ")
    show("\nThe parts, of a row or of a problem of n rows (q, s_i: student; p, t_j: teacher)\n")
    for part in parts():
        show_wrapped(f"{part.name} = {part.equation}")
        for text in (f"with {part.setting}; needs {', '.join(part.needs)}", part.purpose):
            show_wrapped(f"    {text}", indent="    ")
    show("\nWhat is needed\n")
    for name, meaning in NEEDS.items():
        show_wrapped(f"{name}: {meaning}", indent="    ")
    return 0
