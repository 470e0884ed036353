"""`sinkd report`: make the page and the model card of a run again, or one page of several runs."""

from collections.abc import Sequence
from pathlib import Path

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.errors import InputError

_PAGE = "runs.html"


def main(argv: Sequence[str]) -> int:
    """Run `sinkd report FOLDER [FOLDER …]`."""
    parser = CommandParser(
        prog="sinkd report",
        usage="sinkd report FOLDER [FOLDER ...] [--output FILE.html]",
        description="Make report.html and the model card (README.md) of a run again, of what its folder holds. Of "
        "several runs make one page instead: their scores in one table, the settings in which they differ, their "
        "curves over each other.",
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="the folder of a finished run")
    parser.add_argument(
        "--output", metavar="FILE.html", help=f"the page of several runs (default: {_PAGE}, in the working folder)"
    )
    args = parser.parse_args(list(argv))
    if not args.folders:
        raise InputError("give the folder of a finished run: sinkd report runs/student, or several to compare them.")
    from sinkd_llm.runs.inputs import user_path
    from sinkd_llm.terminal import show

    folders = [user_path("FOLDER", folder) for folder in args.folders]
    for folder in folders:
        _check(folder)
    if len(folders) > 1:
        path = _several(folders, user_path("--output", args.output or _PAGE))
        show(f"{len(folders)} runs are compared in {path}")
        return 0
    if args.output is not None:
        raise InputError(f"--output is for the page of several runs; of one run it is report.html in {folders[0]}.")
    from sinkd_llm.runs.reporting import write_run_pages

    page, card = write_run_pages(folders[0])
    show(f"The page is {page}" + (f"; the model card is {folders[0] / 'README.md'}" if card else ""))
    return 0


def _check(folder: Path) -> None:
    """Refuse what is no folder of a run, and say what else it is."""
    from sinkd_llm.report.comparison import PAGE_FILE

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder of a finished run.")
    if (folder / PAGE_FILE).exists():
        raise InputError(
            f"{folder} holds a comparison, whose page is {folder / PAGE_FILE}; 'sinkd compare' makes it again. Give "
            "the folders of its runs to see them on one page."
        )


def _several(folders: Sequence[Path], path: Path) -> Path:
    from sinkd_llm.files import write_whole
    from sinkd_llm.report.page import RunFiles
    from sinkd_llm.report.runs_page import names_of, render_runs
    from sinkd_llm.report.templates import is_page

    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {path} is no page; give a file that ends in .html.")
    if path.is_file() and path.stat().st_size and not is_page(path):
        raise InputError(f"--output {path} is there already and no page of this command; give another file.")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise InputError("a folder is given twice; give each run once.")
    named = {name: RunFiles.read(folder) for name, folder in zip(names_of(resolved), folders, strict=True)}
    text = render_runs(named)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path
