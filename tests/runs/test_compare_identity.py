"""What a run of a comparison is made from, and which answers of a teacher runs share."""

import json
import shutil

import yaml

from sinkd_llm.runs.comparing.identity import changed, made_of
from tests.support.caches import TOP_K, features, write
from tests.support.models import decoder, save, with_adapter, word_tokenizer
from tests.support.stand_in_runs import Runs, parsed

QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta?\tb?\t{label}\n"


def made(recipe, **changes):
    return made_of(parsed({**recipe, **changes}))


def test_the_rows_of_a_benchmark_that_leaves_rows_out(recipe, tmp_path):
    (tmp_path / "QQP").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "QQP" / name).write_text(QQP.format(label=0))
    before = made(recipe, task="qqp", data_dir=str(tmp_path))
    (tmp_path / "QQP" / "train.tsv").write_text(QQP.format(label=1))
    assert changed(before, made(recipe, task="qqp", data_dir=str(tmp_path))) == [str(tmp_path / "QQP" / "train.tsv")]


def test_how_a_model_reads_and_writes(recipe, teacher, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(teacher, own)
    before = made(recipe, teacher_model_name_or_path=str(own))
    (own / "README.md").write_text("what it is")
    assert changed(before, made(recipe, teacher_model_name_or_path=str(own))) == []
    (own / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert changed(before, made(recipe, teacher_model_name_or_path=str(own))) == [f"the tokenizer of {own}"]
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    now = made(recipe, teacher_model_name_or_path=str(own))
    assert changed(before, now) == [f"the generation_config of {own}", f"the tokenizer of {own}"]


def test_the_base_of_an_adapter_that_lies_elsewhere(recipe, tmp_path):
    base = save(tmp_path / "base", decoder(), word_tokenizer())
    model = decoder()
    model.config._name_or_path = str(base)
    save(tmp_path / "adapter", with_adapter(model), word_tokenizer())
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    changes = {"teacher_model_name_or_path": str(tmp_path / "adapter")}
    before = made(recipe, **changes)
    save(base, decoder(seed=1), word_tokenizer())
    assert changed(before, made(recipe, **changes)) == [f"the weights of the base of {tmp_path / 'adapter'}"]


def test_what_was_not_looked_at_before_is_said(compare, tmp_path, capsys):
    grid = {"variants": {"kl": {}}, "seeds": [0]}
    compare(grid, Runs())
    (file,) = (tmp_path / "out" / "runs").glob("kl-*/seed-0-*.json")
    known = json.loads(file.read_text())
    file.with_suffix("").rename(file.with_name("seed-0-earlier"))
    earlier = {name: value for name, value in known.items() if not name.startswith("the tokenizer of")}
    file.with_name("seed-0-earlier.json").write_text(json.dumps(earlier))
    file.unlink()
    runs = Runs()
    compare(grid, runs)
    assert len(runs.trained) == 1
    assert "kl, seed 0 is run again: the tokenizer of" in (said := " ".join(capsys.readouterr().err.split()))
    assert "was not looked at then" in said


def caches_of(runs):
    return {
        bool(settings.get("labelled_rows_only")): settings["teacher_cache"]
        for settings in map(yaml.safe_load, runs.trained)
    }


def test_labelled_rows_are_among_the_answers_to_all_rows(compare, tmp_path):
    changes, labelled = {"labels_per_class": 1, "signal": "choices"}, {"labelled_rows_only": True}
    grid = {"variants": {"labelled": labelled, "all": {}}, "seeds": [0]}
    runs = Runs()
    compare(grid, runs, changes)
    (asked,) = [words for words in runs.commands if words[0] == "cache"]
    with open(asked[asked.index("--config") + 1]) as file:
        assert "labelled_rows_only" not in yaml.safe_load(file)
    assert len({*caches_of(runs).values()}) == 1
    alone = Runs()
    shutil.rmtree(tmp_path / "out")
    compare({**grid, "variants": {"labelled": labelled}}, alone, changes)
    assert caches_of(alone)[True] != caches_of(runs)[True]  # nobody pays for answers that no run reads
    more = Runs()
    compare(grid, more, changes)
    assert [words[0] for words in more.commands] == ["cache", "distill"]
    assert caches_of(more)[False] == caches_of(runs)[False]


def test_a_temperature_that_is_added_is_asked_for(compare):
    class Kept(Runs):
        def __call__(self, command, environment):
            argv = command.argv
            if argv[0] == "cache":
                write(self.folder_of(argv), features(4), TOP_K)
            return super().__call__(command, environment)

        def folder_of(self, argv):
            from pathlib import Path

            return Path(argv[argv.index("--output") + 1])

    grid = {"variants": {"x": {}}, "grid": {"temperature": [1.0, 2.0]}, "seeds": [0]}
    compare(grid, Kept())
    runs = Runs()
    compare({**grid, "grid": {"temperature": [1.0, 2.0, 4.0]}}, runs)
    assert [words[0] for words in runs.commands] == ["cache", "distill"]
    words = runs.commands[0]
    assert words[words.index("--overwrite") :][:2] == ["--overwrite", "true"]
    assert {"1.0", "2.0", "4.0"} <= {*words[words.index("--temperatures") + 1 :]}
    again = Runs()
    compare({**grid, "grid": {"temperature": [2.0, 1.0]}, "seeds": [1]}, again)
    assert [words[0] for words in again.commands] == ["distill", "distill"]
