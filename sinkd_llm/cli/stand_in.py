"""What a model is made from that a recipe names and that is not trained yet, for an estimate of memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sinkd_llm.cli.recipe_file import read_config
from sinkd_llm.cli.shipped import find_recipe, recipes
from sinkd_llm.errors import InputError


def stand_in(name: str | None, recipe: str) -> tuple[str, str] | None:
    """
    The model from which another recipe trains the folder `name`, and that recipe.

    Args:
        name (`str`, *optional*): what a recipe calls its model or its teacher.
        recipe (`str`): the recipe that names it. Those beside it are looked at, and those of the package.

    Returns:
        `tuple[str, str]` or `None`: `None` where the folder is there, or no recipe writes to it.
    """
    if name is None or Path(name).expanduser().exists():
        return None
    for file, settings in _settings(find_recipe(recipe)):
        made, source = settings.get("output_dir"), settings.get("model_name_or_path")
        if isinstance(made, str) and isinstance(source, str) and Path(made) == Path(name) and source != name:
            return source, str(file)
    return None


def _settings(recipe: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    beside = sorted({*recipe.parent.glob("*.yaml"), *recipe.parent.glob("*.yml")} - {recipe})
    for file in (*beside, *recipes().values()):
        with suppress(InputError, OSError):  # other files may be anything
            yield file, read_config(str(file))
