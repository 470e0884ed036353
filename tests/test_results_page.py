"""docs/results.md and README's results say what the committed results say, and each can be made again."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from experiments import run
from sinkd_llm.cli.parsing import parse_training
from sinkd_llm.report.comparison import TFIDF
from sinkd_llm.runs.comparing.baselines import answers_without_model
from sinkd_llm.runs.comparing.grid import read_grid
from sinkd_llm.runs.data import load_run_data
from sinkd_llm.runs.training import check_distill, check_finetune
from sinkd_llm.units import format_bytes, format_duration
from tools import result_files, results_page
from tools.results_figures import figure_of

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(folder.name for folder in result_files.RESULTS.iterdir() if folder.is_dir())


def test_the_page_is_made_of_the_results() -> None:
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page(), "run python -m tools.results_page"


def test_the_figures_are_drawn_from_the_results() -> None:
    drawn = results_page.figures()
    assert drawn
    assert {file.name for file in results_page.FIGURES.iterdir()} == set(drawn)
    for name, svg in drawn.items():
        assert (results_page.FIGURES / name).read_text(encoding="utf-8") == svg, "run python -m tools.results_page"


def test_a_setting_is_drawn_at_each_of_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    (tmp_path / "one").mkdir()
    lines = [f"weight,{weight},{score}" for weight in (1, 3, 30) for score in (0.25, 0.75)]
    (tmp_path / "one" / "runs.csv").write_text("\n".join(["variant,w,acc", *lines, "gold,,0.1"]))
    one = result_files.Result("one", {}, {"metric": "acc"})
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", lambda _, x, y, yerr, **__: seen.append((x, y, yerr)))
    content = {"y": "accuracy", "settings": {"weight": "w"}}
    assert figure_of(content, {"weight": one, "another": one}) is not None
    assert seen == [([1.0, 3.0, 30.0], [0.5] * 3, [pytest.approx(0.5**0.5 / 2)] * 3)]
    assert figure_of(content, {}) is None


def test_readme_shows_the_results() -> None:
    readme = results_page.README.read_text(encoding="utf-8")
    assert readme == results_page.with_block(readme), "run python -m tools.results_page"


@pytest.mark.parametrize("page", [results_page.README, results_page.COMMANDS])
def test_pages_show_the_table_of_the_quickstart(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert results_page.quickstart_table() in text, "run python -m tools.results_page"
    assert text == results_page.with_quickstart(text)


def test_readme_says_what_the_quickstart_took() -> None:
    found = json.loads((result_files.RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    readme = " ".join(results_page.README.read_text(encoding="utf-8").split())
    assert f"{format_duration(found['seconds'])} and at most {format_bytes(found['memory_bytes'])}" in readme


def test_readme_says_what_words_alone_score_on_the_quickstart() -> None:
    recipe = ROOT / "sinkd_llm" / "recipes" / "quickstart_student.yaml"
    task_args, training_args, _ = parse_training("distill", ["--config", str(recipe)])
    scored = answers_without_model(load_run_data(task_args, training_args.seed))[TFIDF].metrics["acc"]
    readme = " ".join(results_page.README.read_text(encoding="utf-8").split())
    assert f"TF-IDF with logistic regression {scored:.3f}." in readme


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_means_of_its_runs(name: str) -> None:
    found = result_files.Result.read(name)
    metric = found.about["metric"]
    for row in found.rows.values():
        scores = [
            float(one[metric]) for one in found.runs() if one["cell"] == row["cell"] and one["variant"] == row["name"]
        ]
        if scores:
            assert float(row["mean"]) == pytest.approx(sum(scores) / len(scores), rel=1e-5)
            assert {one["seed"] for one in found.runs() if one["variant"] == row["name"]} == {
                str(seed) for seed in found.about["seeds"]
            }


@pytest.mark.parametrize("name", NAMES)
def test_every_result_has_its_command(name: str) -> None:
    known = run.steps()
    about = json.loads((result_files.RESULTS / name / "about.json").read_text(encoding="utf-8"))
    assert about["command"] == run.command_of(name, known, "runs/experiments", "data")
    assert run.in_order(name, known)[-1] == name


def test_models_have_their_commands() -> None:
    for name, said in json.loads(run.MODELS.read_text(encoding="utf-8")).items():
        assert said["command"] == run.command_of(name, run.steps(), "runs/experiments", "data")


def test_the_files_that_commands_name_are_there() -> None:
    for step in run.steps().values():
        for word in step["command"].split():
            if word.startswith("experiments/"):
                assert (ROOT / word).is_file(), word
    for grid in (ROOT / "experiments" / "grids").glob("*.yaml"):
        assert yaml.safe_load(grid.read_text(encoding="utf-8"))["seeds"], grid


def test_what_is_kept_of_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    against = {"estimate": -0.0251234567, "low": -0.03, "high": -0.02, "p": 1e-9, "p_holm": 2e-9, "seeds": 5}
    row = {"name": "SinKD", "kind": "student", "cell": "SinKD", "mean": 0.8, "sd": 0.01, "against": against}
    content = {
        "rows": [row, {**row, "name": "transported", "against": None}],
        "runs": [{"cell": "SinKD", "folder": f"elsewhere/runs/sinkd/seed-{seed}"} for seed in (0, 1)],
        **{"task": "banking77", "metric": "acc", "baseline": "transported", "seeds": [0], "examples": 3},
        **{"held_out_examples": 2, "finished": "today", "versions": {"torch": "2"}, "sentences": ["said"]},
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    (tmp_path / "results.csv").write_text("cell,seed\nSinKD,0\n")
    for seed, losses in ((0, (2.0, 1.0)), (1, (4.0,))):
        (tmp_path / "runs" / "sinkd" / f"seed-{seed}").mkdir(parents=True)
        logged = [{"step": step, "loss": loss, "sinkhorn/diagonal_mass": 0.5} for step, loss in enumerate(losses, 1)]
        lines = "".join(json.dumps(record) + "\n" for record in logged)
        (tmp_path / "runs" / "sinkd" / f"seed-{seed}" / "metrics.jsonl").write_text(lines)
    run.keep("one", tmp_path, "sinkd compare", {"teacher-x": 0.9})
    with (tmp_path / "results" / "one" / "table.csv").open() as file:
        kept = list(csv.DictReader(file))
    curves = (tmp_path / "results" / "one" / "curves.csv").read_text().splitlines()
    assert curves[1:] == ["SinKD,1,3.0,0.5,"]  # step 2 is not logged by every seed
    assert kept[0]["estimate"] == "-0.0251235"
    assert (kept[1]["estimate"], kept[1]["mean"]) == ("", "0.8")
    monkeypatch.setattr(result_files, "RESULTS", tmp_path / "results")
    result = result_files.Result.read("one")
    other = {"models": {"teacher-x": 0.91}}
    assert results_page.with_scores("{teacher-x}", [result.about]) == "0.900"
    assert results_page.with_scores("{teacher-x}", [other, result.about]) == "0.900 to 0.910"
    assert results_page.difference_cell(result.rows["SinKD"]) == "-0.025 [-0.030, -0.020], p < 0.001"
    assert results_page.scores({"here": result})[2:] == [
        "| SinKD | 0.800 ± 0.010 |",
        "| transported | 0.800 ± 0.010 |",
    ]


@pytest.mark.parametrize(
    ("file", "left", "said"),
    [
        ("table.csv", "name,mean\n", "table.csv has no row 'KL'"),
        ("table.csv", None, "table.csv cannot be read"),
        ("about.json", "{", "about.json cannot be read"),
    ],
)
def test_a_result_whose_files_are_not_whole_is_no_result(
    file: str, left: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "table.csv").write_text("name,mean\nKL,0.5\n")
    (tmp_path / "one" / "about.json").write_text('{"baseline": "KL"}')
    assert result_files.Result.read("one").rows["KL"]["mean"] == "0.5"
    if left is None:
        (tmp_path / "one" / file).unlink()
    else:
        (tmp_path / "one" / file).write_text(left)
    with pytest.raises(SystemExit, match=rf"experiments/results/one/{said}.*run its step again"):
        result_files.Result.read("one")


def _comparisons() -> list[str]:
    """A step for each recipe with a grid."""
    steps = {name: step["command"].split() for name, step in run.steps().items() if run.is_comparison(step)}
    return list({(words[3], words[5]): name for name, words in steps.items()}.values())


@pytest.mark.parametrize("name", _comparisons())
def test_every_variant_of_a_grid_is_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = run.command_of(name, run.steps(), "runs/experiments", "data").split()[2:]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    recipe, grid, output = (flags.pop(flag) for flag in ("--config", "--grid", "--output"))
    assert output == f"runs/experiments/{name}"
    more = [word for pair in flags.items() for word in pair]
    content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    for cell in read_grid(Path(grid)).cells:
        settings = {**content, **cell.settings}
        settings = {key: value for key, value in settings.items() if f"--{key}" not in flags}
        given = [f"--{key}={value}" for key, value in settings.items()]
        task, training, model = parse_training("distill", [*given, *more, "--output_dir", output])
        check_distill(training, model) if training.has_teacher else check_finetune(training, model, task)


def test_a_step_for_several_values_is_a_step_for_each() -> None:
    known = run.steps()
    assert {"banking77-groups-8", "clinc150-groups-32", "banking77-swapped-50"} < known.keys()
    assert run.in_order("clinc150-groups-8", known) == [
        "teacher-clinc150",
        "rows-clinc150",
        "start-clinc150",
        "clinc150-groups-8",
    ]
    for name, step in known.items():
        words = run.command_of(name, known, "WORK", "DATA")
        assert "{" not in words, words
        assert f"WORK/{name}" in words
        assert set(step["after"]) <= known.keys()


def test_a_step_that_is_not_known_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "bankin77-pairs"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no step 'bankin77-pairs'. Did you mean 'banking77-pairs'?" in capsys.readouterr().err
