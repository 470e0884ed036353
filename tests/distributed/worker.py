"""One process of a launch: trains every case of a JSON file and writes what came out.

Starting DeepSpeed takes most of the time, so that one launch serves all cases. Each takes its environment from a file
in `ds_configs/`, through accelerate's own code.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.launch import REPOSITORY

PREFIXES = ("ACCELERATE_", "FSDP_")


def launch_environment(config: str, processes: int) -> dict[str, str]:
    """What `accelerate launch --config_file ds_configs/<config>.yaml` would set."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = REPOSITORY / "ds_configs" / f"{config}.yaml"
    words = ["--config_file", str(path), "--num_processes", str(processes), "--main_process_port", "0", "none.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(args)[1]
    else:
        environment = prepare_multi_gpu_env(args)
    return {name: value for name, value in environment.items() if name.startswith(PREFIXES)}


def enter(case: dict[str, Any]) -> None:
    """Forget the launch of the case before, apart from the process group."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    for name in [n for n in os.environ if n.startswith(PREFIXES)]:
        del os.environ[name]
    os.environ.update(launch_environment(case["config"], int(os.environ["WORLD_SIZE"])))


def fsdp_without_gpus() -> None:
    """Accelerate ignores FSDP where there are no GPUs, although torch shards over gloo as well."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def patched(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = patched  # type: ignore[method-assign]


def run(case: dict[str, Any], out: Path) -> dict[str, Any]:
    from tests.distributed.cases import train_case

    enter(case)
    return train_case(case, out / case["name"])


def main(cases_file: str, out: str) -> int:
    # DeepSpeed's collectives in shared memory take minutes to compile, and gloo does the same. (As an attribute of its
    # package, this module is hidden by torch itself.)
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    fsdp_without_gpus()
    rank = int(os.environ["RANK"])
    for case in json.loads(Path(cases_file).read_text(encoding="utf-8")):
        try:
            result = run(case, Path(out))
        except Exception:  # the other processes may wait for this one: end the launch
            result = {"error": traceback.format_exc()}
        (Path(out) / f"{case['name']}.{rank}.json").write_text(json.dumps(result), encoding="utf-8")
        if "error" in result:
            print(result["error"], file=sys.stderr, flush=True)
            return 1
    return 0
