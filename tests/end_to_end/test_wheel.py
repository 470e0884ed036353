"""What a wheel brings along: built from a copy of the tree, installed apart, and asked from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig

from tests.support.launch import REPOSITORY


def test_recipes_and_configurations_are_in_the_wheel(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("sinkd_llm", "recipes", "ds_configs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", *offline, "--no-build-isolation", "-w", str(tmp_path / "wheels"), str(copy)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    prefix = tmp_path / "installed"
    install = ["install", *offline, "--no-compile", "--ignore-installed", "--prefix", str(prefix), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    site = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    program = (
        "import sinkd_llm.cli.shipped as s, sinkd_llm.cli.launching as l; print(s.__file__); "
        "print(*s.recipes()); print(*l.config_names()); print(s.find_recipe('minilm_teacher'))"
    )
    environment = {**os.environ, "PYTHONPATH": site}
    run = [sys.executable, "-c", program]
    out = subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    module, recipes, configs, one = out.splitlines()
    assert module.startswith(site)
    folders = (REPOSITORY / "recipes", REPOSITORY / "sinkd_llm" / "recipes")
    assert recipes.split() == sorted(file.stem for folder in folders for file in folder.glob("*.yaml"))
    assert configs.split() == sorted(file.stem for file in (REPOSITORY / "ds_configs").glob("*.yaml"))
    assert one == str(prefix / "share" / "sinkd_llm" / "recipes" / "minilm_teacher.yaml")
