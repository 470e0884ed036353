"""What a shell is told when a user presses Tab."""

import json
import subprocess
import sys

import pytest

from sinkd_llm.cli import COMMANDS

LINES = {
    "sinkd dis": ["distill"],
    "sinkd distill --divergence ": ["kl", "rkl", "js", "tvd", "none"],
    "sinkd distill --config minilm_": ["minilm_student", "minilm_teacher"],
    "sinkd distill --sinkhorn_weight 1 --lora_al": ["--lora_alpha"],
    "sinkd evaluate --task banking77": ["banking77", "banking77_desk"],
    "sinkd finetune --accelerate_config fs": ["fsdp2"],
    "sinkd finetune --model_name_or_path smol": ["smollm2-135m"],
    "sinkd tasks sh": ["show"],
    "sinkd tasks show rte_": ["rte_true"],
    "sinkd recipes show sst2_teach": ["sst2_teacher"],
    "sinkd env --estimate sst2_teach": ["sst2_teacher"],
    "sinkd quickstart --student_": ["--student_layers"],
    "sinkd nothing --x": [],
}
MORE = ("sinkd ", "sinkd distill --", "sinkd distill --config mine_")
# In a process of its own: argcomplete writes to file descriptors that belong to somebody else here.
PROGRAM = """
import json, os, sys
from sinkd_llm.cli import main
from sinkd_llm.cli.command_parser import CommandParser
found = {}
for line in json.loads(sys.argv[1]):
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\\n", "_ARGCOMPLETE_STDOUT_FILENAME": "completions"}
    os.environ.update({**asked, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"})
    open("completions", "w").close()
    try:
        main([])
    except SystemExit:
        assert CommandParser.instead is None
        found[line] = [word.strip() for word in open("completions").read().split("\\n") if word.strip()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Line to the words that may stand at its end, in a folder with two files."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "mine_student.yaml").write_text("")
    (folder / "mine_notes.txt").write_text("")
    argv = [sys.executable, "-c", PROGRAM, json.dumps([*LINES, *MORE])]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", LINES)
def test_names_of_commands_flags_and_values(completed, line):
    assert completed[line] == LINES[line]


def test_all_commands_and_flags_are_there_and_none_twice(completed):
    assert {*completed["sinkd "]} >= {*COMMANDS}
    flags = completed["sinkd distill --"]
    assert {"--config", "--sinkhorn_weight", "--learning_rate", "--adam_beta1", "--dry_run"} <= {*flags}
    assert len(flags) == len({*flags})
    assert not [flag for flag in flags if "-" in flag.removeprefix("--")]


def test_a_file_of_one_s_own_is_offered_too(completed):
    assert completed["sinkd distill --config mine_"] == ["mine_student.yaml"]


def test_nothing_of_it_is_imported_unless_a_shell_asks():
    program = "import sys; from sinkd_llm.cli import main; main(['--help']); print('argcomplete' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "False"
