"""The YAML files that come beside the package: recipes and configurations of accelerate, by name."""

from functools import cache
from importlib import metadata
from pathlib import Path

from sinkd_llm.errors import InputError, nearest, shown

_PACKAGE = Path(__file__).resolve().parents[1]
_RECIPES = "recipes"


def shipped_files(folder: str) -> dict[str, Path]:
    """
    The YAML files of a folder at the top of the repository, by their names without `.yaml`.

    Args:
        folder (`str`): its name: `"recipes"`, `"ds_configs"`.
    """
    beside = _PACKAGE.parent / folder
    if beside.is_dir():  # a checkout
        files = sorted(beside.glob("*.yaml"))
    else:  # an installed wheel puts them where its record says
        record = metadata.files("sinkd-llm") or []
        found = [f for f in record if f.suffix == ".yaml" and f.parent.name == folder and "share" in f.parts]
        files = [Path(str(f.locate())).resolve() for f in found]
    return {file.stem: file for file in files}


@cache
def recipes() -> dict[str, Path]:
    """All recipes that come with the package, by name; those of the quickstart lie inside the package."""
    own = {file.stem: file for file in (_PACKAGE / _RECIPES).glob("*.yaml")}
    return dict(sorted((own | shipped_files(_RECIPES)).items()))


def find_recipe(name: str) -> Path:
    """
    The file that `--config` names: a path, or the name of a recipe that comes with the package. A file wins.

    Args:
        name (`str`): what was given.

    Raises:
        InputError: for what is neither, and looks like a name. A path that is not there is refused by its reader.
    """
    path = Path(name).expanduser()
    known = recipes()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.exists():
        if path.stem in known and not path.exists():
            raise InputError(
                f"There is no recipe {shown(name)[1:-1]}: it does not exist. One of that name comes with the package: "
                f"give {path.stem}, without folder and ending."
            )
        return path
    raise InputError(
        f"There is no recipe {shown(name)[1:-1]}: it is no file, and no recipe that comes with the package."
        f"{nearest(name, list(known), 0.6)} 'sinkd recipes' lists them."
    )
