"""A setting has one text and one default: the docstring is what --help and docs/settings.md show."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from trl import ModelConfig

from sinkd_llm import DistillationObjective, SinKDConfig
from sinkd_llm.cli.parsing import parse_recipe
from sinkd_llm.evaluation import evaluate_task
from sinkd_llm.runs import run_evaluations
from sinkd_llm.runs.arguments import CacheArguments, EvaluateArguments, LaunchArguments, TaskArguments
from sinkd_llm.training.settings.optional_terms import OptionalTermArguments
from sinkd_llm.training.settings.rules import NO_EFFECT, REFUSED_ENVIRONMENT
from sinkd_llm.training.settings.texts import as_in, described, plain_help, setting_texts
from tools.settings_page import PAGE, page

COMMANDS = (SinKDConfig, OptionalTermArguments, TaskArguments, CacheArguments, EvaluateArguments, LaunchArguments)


def own_fields(settings: type) -> dict[str, Any]:
    return {one.name: one for one in dataclasses.fields(settings) if one.name in settings.__annotations__}


@pytest.mark.parametrize("settings", COMMANDS, ids=lambda settings: settings.__name__)
def test_the_docstring_says_type_and_default_of_each_setting(settings: type) -> None:
    for name, text in setting_texts(settings).items():
        field = own_fields(settings)[name]
        hint = settings.__annotations__[name]  # a parser changes the type of the field
        written = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
        default = "None" if text.default is None else text.default
        assert repr(field.default).replace("'", '"') == default, name
        assert written.replace("typing.", "").removesuffix(" | None") == text.kind, name


@pytest.mark.parametrize("settings", COMMANDS, ids=lambda settings: settings.__name__)
def test_the_help_of_each_setting_is_its_docstring_or_another_command_s(settings: type) -> None:
    texts = setting_texts(settings)
    others = [one for other in (*COMMANDS, ModelConfig) if other is not settings for one in dataclasses.fields(other)]
    for name, field in own_fields(settings).items():
        if name in texts:
            assert field.metadata["help"] == plain_help(texts[name].text)
        else:
            owner = next(one for one in others if one.name == name)
            assert (field.metadata["help"], field.default) == (owner.metadata["help"], owner.default)


def test_what_evaluation_takes_in_python_has_the_defaults_of_its_command() -> None:
    flags = {one.name: one.default for one in dataclasses.fields(EvaluateArguments)}
    for function in (run_evaluations, evaluate_task):
        given = inspect.signature(function).parameters.values()
        defaults = {one.name: one.default for one in given if one.name in flags and one.default is not one.empty}
        assert {"batch_size", "max_length", "apply_chat_template", "add_eos"} <= defaults.keys()
        assert defaults == {name: flags[name] for name in defaults}


def test_the_objective_of_untouched_settings_is_the_objective_s_own_default(tmp_path: Any) -> None:
    assert SinKDConfig(output_dir=str(tmp_path), report_to="none").objective() == DistillationObjective()


def test_the_settings_page_is_made_from_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.settings_page"


def test_the_page_on_the_command_line_names_what_is_refused() -> None:
    words = (PAGE.parent / "command_line.md").read_text(encoding="utf-8")
    assert [name for name in NO_EFFECT if f"`{name}`" not in words] == []
    assert [name for name in REFUSED_ENVIRONMENT if f"`{name.rstrip('*')}`" not in words] == []


def test_help_shows_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_recipe("distill", ["--help"])
    printed = "".join(capsys.readouterr().out.split())  # lines break at spaces and hyphens
    for settings in (SinKDConfig, OptionalTermArguments, TaskArguments, LaunchArguments):
        for text in setting_texts(settings).values():
            if text.name != "remove_unused_columns":  # one of the flags that only --help_all shows
                assert "".join(plain_help(text.text).replace("%%", "%").split()) in printed


def test_a_setting_without_a_text_is_refused() -> None:
    @dataclass
    class Missing:
        """
        Args:
            first (`int`): said.
        """

        first: int = 1
        second: int = 2

    with pytest.raises(TypeError, match=r"Missing .* differ: second"):
        described(Missing)


def test_a_text_without_a_setting_is_refused() -> None:
    @dataclass
    class Stale:
        """
        Args:
            first (`int`): said.
            gone (`int`): said of a setting that was renamed.
        """

        first: int = 1

    with pytest.raises(TypeError, match=r"Stale .* differ: gone"):
        described(Stale)


def test_a_borrowed_setting_keeps_choices_and_default_and_may_have_its_own_text() -> None:
    @described
    @dataclass
    class Borrowing:
        """
        Args:
            divergence (`str`, *optional*): said otherwise here,
                over two lines.
        """

        divergence: str = as_in(SinKDConfig, "divergence")
        max_length: int | None = as_in(SinKDConfig, "max_length")

    own = own_fields(Borrowing)
    assert own["divergence"].default == "kl"
    assert own["divergence"].metadata["choices"] == own_fields(SinKDConfig)["divergence"].metadata["choices"]
    assert own["divergence"].metadata["help"] == "said otherwise here, over two lines."
    assert own["max_length"].metadata["help"] == own_fields(SinKDConfig)["max_length"].metadata["help"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("see [`load_model`]", "see load_model"),
        ("see [`~sinkd_llm.models.load_model`]", "see load_model"),
        ('`"kl"` or `1 - alpha`', '"kl" or 1 - alpha'),
        ("50 % of it", "50 %% of it"),
    ],
)
def test_help_has_no_markup(text: str, plain: str) -> None:
    assert plain_help(text) == plain
