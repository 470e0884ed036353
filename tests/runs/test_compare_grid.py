"""What a grid says, and what is refused of it."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.runs.comparing.grid import Cell, read_grid


@pytest.fixture
def grid(tmp_path):
    def read(text, **more):
        (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
        return read_grid(tmp_path / "grid.yaml", **more)

    return read


def test_a_grid_is_the_product_of_its_values(grid):
    found = grid("grid: {alpha: [0.1, 0.9], temperature: [1, 2, 4]}")
    assert [cell.name for cell in found.cells][:2] == ["alpha=0.1, temperature=1", "alpha=0.1, temperature=2"]
    assert len(found.cells) == len(found.variants) == 6
    assert found.cells[-1].settings == {"alpha": 0.9, "temperature": 4}
    assert found.baseline == "alpha=0.1, temperature=1"
    assert found.seeds == (0, 1, 2)
    assert not found.chooses


def test_variants_are_compared_and_the_grid_is_what_they_are_tuned_over(grid):
    found = grid("variants: {kl: {sinkhorn_weight: 0}, both: {}}\ngrid: {temperature: [1, 2]}\nbaseline: both")
    assert found.variants == ["kl", "both"]
    assert [cell.name for cell in found.cells] == [
        *("kl, temperature=1", "kl, temperature=2", "both, temperature=1", "both, temperature=2"),
    ]
    assert found.cells[1].settings == {"sinkhorn_weight": 0, "temperature": 2}
    assert found.baseline == "both"
    assert found.chooses


def test_variants_alone_choose_nothing(grid):
    found = grid("variants: {kl: {sinkhorn_weight: 0}, both: {}}\nselect_on: none\nheldout_share: 0")
    assert [cell.name for cell in found.cells] == ["kl", "both"]
    assert found.heldout_share == 0


def test_seeds_of_the_command_line_win(grid):
    assert grid("grid: {alpha: [1]}\nseeds: [7]", seeds=[3, 4]).seeds == (3, 4)
    assert grid("grid: {alpha: [1]}\nseeds: [7]").seeds == (7,)


def test_names_of_folders_tell_cells_apart():
    cells = [Cell("Ä/b", {"alpha": 1}), Cell("ä b", {"alpha": 1}), Cell("x" * 300, {}), Cell("..", {})]
    folders = [cell.folder for cell in cells]
    assert len({*folders}) == 4
    assert all("/" not in name and not name.startswith(".") and len(name) < 80 for name in folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "grid"),
        ("[1, 2]", "it holds a list"),
        ("alpha", "it holds a str"),
        ("seeds: [1]", "neither 'variants'"),
        ("grid: {alpha: []}", "empty list"),
        ("grid: {}", "'grid' is {}"),
        ("variants: {}", "'variants' is {}"),
        ("grid: [alpha]", "'grid' is"),
        ("variants: [alpha]", "'variants' is"),
        ("grid: {alpha: 0.5}", "give a list of values"),
        ("grid: {alpha: [0.5, 0.5]}", "twice"),
        ("grid: {alpha: [1, 1.0]}", "twice"),
        ("variants: {a: 1}", "the variant 'a' is 1"),
        ("variants: {a: {alpha: 1}, b: {alpha: 1}}", "have the same settings"),
        ("variants: {a: {}, a: {alpha: 1}}", "gives the key 'a' again"),
        ("variants: {a: {alpha: 1}}\ngrid: {alpha: [1]}", "which the grid varies"),
        ("variants: {teacher: {alpha: 1}}", "as a row of the table"),
        ("variants: {identity control of x: {alpha: 1}}", "as a row of the table"),
        ("variants: {teacher of x: {alpha: 1}}", "as a row of the table"),
        ("variants: {' ': {}}", "can be printed"),
        ("grid: {alpha: [1]}\nseeds: []", "at least one seed"),
        ("grid: {alpha: [1]}\nseeds: 0", "at least one seed"),
        ("grid: {alpha: [1]}\nseeds: [0, 0]", "0 twice"),
        ("grid: {alpha: [1]}\nseeds: [-1]", "holds -1"),
        ("grid: {alpha: [1]}\nseeds: [true]", "holds True"),
        ("grid: {alpha: [1]}\nbaseline: kl", "no such variant"),
        ("variants: {kl: {}}\nbaseline: kll", "Did you mean 'kl'"),
        ("grid: {alpha: [1]}\nmetrics: acc", "Did you mean 'metric'"),
        ("grid: {alpha: [1]}\nmetric: [acc]", "give a name"),
        ("grid: {alpha: [1]}\nselect_on: test", "says nothing of other rows"),
        ("grid: {alpha: [1]}\nselect_on: rows", "give one of heldout, none"),
        ("grid: {alpha: [1]}\nheldout_share: 1", "heldout_share is 1"),
        ("grid: {alpha: [1]}\nheldout_share: true", "heldout_share is True"),
        ("grid: {alpha: [1]}\nteacher_cache: folder", "give one of auto, none"),
        ("grid: {seed: [1]}", "list the seeds under 'seeds'"),
        ("variants: {a: {output_dir: x}}", "folder of its own"),
        ("grid: {max_eval_samples: [1]}", "scored on the same rows"),
        ("variants: {a: {}}\ngrid: {alpha: [0, 1]}\nselect_on: none", "chosen on held-out training rows"),
        ("variants: {a: {}}\ngrid: {alpha: [0, 1]}\nheldout_share: 0", "chosen on held-out training rows"),
        (f"grid: {{alpha: {list(range(5000))}}}", "more than 10,000 runs"),
    ],
)
def test_what_is_refused(grid, text, message):
    with pytest.raises(InputError, match=message) as raised:
        grid(text)
    assert "grid" in str(raised.value)


def test_a_seed_of_the_command_line_is_named_by_its_flag(grid):
    with pytest.raises(InputError, match=r"^--seeds holds 1 twice"):
        grid("grid: {alpha: [1]}", seeds=[1, 1])
