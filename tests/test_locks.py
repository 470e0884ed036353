"""One process writes to a folder at a time, and a dead one does not hold it."""

import subprocess
import sys

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.locks import folder_lock, refuse_if_locked

HOLDER = """
import sys, time
from pathlib import Path
from sinkd_llm.locks import folder_lock
with folder_lock(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_taken_over_when_it_is_dead(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline().strip() == "held"
            for refused in (refuse_if_locked, hold):
                with pytest.raises(InputError, match=rf"is writing to .*run \(process {other.pid} on .*\); go away"):
                    refused(folder, "go away")
        finally:
            other.kill()
    assert (folder / ".lock").exists()
    refuse_if_locked(folder, "go away")
    hold(folder, "go away")
    assert list(folder.iterdir()) == []


def hold(folder, advice):
    with folder_lock(folder, advice):
        pass


def test_looking_leaves_nothing(tmp_path):
    refuse_if_locked(tmp_path / "absent", "x")
    refuse_if_locked(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
