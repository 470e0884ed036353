"""Training settings that do not go together, or that a library would refuse only after the models are loaded."""

import copy
import inspect
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError, SettingError, first_line, nearest, plain, shown
from sinkd_llm.training.settings.checks import check_names, check_settings, mapping_of
from sinkd_llm.training.settings.layers import settle_layers
from sinkd_llm.training.settings.rules import NOT_ADAM, OPTIM_ARGS

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Trackers that Transformers knows -> the package that brings each.
_TRACKERS = {
    **{name: name for name in ("mlflow", "neptune", "tensorboard", "trackio", "wandb", "codecarbon", "clearml")},
    **{"azure_ml": "azureml-core", "comet_ml": "comet_ml", "dagshub": "dagshub", "flyte": "flytekit"},
    **{"dvclive": "dvclive", "swanlab": "swanlab", "kubeflow": "kubeflow"},
}
_EXAMPLE = """'{"name": value}'"""
_CHECKPOINTING = (
    *("every_n_layers", "offload"),
    *("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"),
)


def check_mappings(args: "TrainingArguments") -> None:
    """
    Check the names in every setting that is a mapping.

    Raises:
        SettingError: for text that is no JSON, and for a name that nothing reads.
    """
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        given = mapping_of(name, getattr(args, name), """'{"use_reentrant": false}'""")
        if given:
            check_names(name, given, _CHECKPOINTING)
            if not (args.activation_checkpointing or args.gradient_checkpointing):
                raise SettingError(name, "would have no effect without gradient_checkpointing; set both, or none.")
    mapping_of("lr_scheduler_kwargs", args.lr_scheduler_kwargs, """'{"num_cycles": 2}'""")
    _check_accelerator_config(args.accelerator_config)
    mapping_of("deepspeed", args.deepspeed, "the path of a DeepSpeed JSON file", file=True)
    mapping_of("fsdp_config", args.fsdp_config, "the path of a JSON file", file=True)
    for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
        given = mapping_of(name, getattr(args, name, None), """'{"dtype": "bfloat16"}'""")
        if given:
            from sinkd_llm.models import load_model

            parameters = inspect.signature(load_model).parameters.values()
            known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"name_or_path", "labels"}
            if "torch_dtype" in given:
                raise SettingError(name, "has the key 'torch_dtype', which is called 'dtype' now; write that.")
            check_names(name, given, known)


def check_revision(setting: str, revision: str | None, source: str | None) -> None:
    """
    Check that a revision belongs to a model of the hub: local files have none.

    Args:
        setting (`str`): the setting that holds the revision.
        revision (`str`, *optional*): its value; `"main"` is no choice of anybody's.
        source (`str`, *optional*): the model that it is for, as it was given.

    Raises:
        SettingError: for a revision of a folder, a GGUF file or a bundled model.
    """
    if revision in (None, "main") or source is None:
        return
    from sinkd_llm.models.names import resolve_model_source

    try:
        kind = resolve_model_source(source).kind
    except InputError:
        return  # what is wrong with the model is said where it is loaded
    if kind != "hub":
        what = {"bundled": "a bundled model", "gguf": "a GGUF file", "adapter": "the folder of an adapter"}
        raise SettingError(
            setting,
            f"is {shown(revision)}, which would have no effect: {shown(source)} is "
            f"{what.get(kind, 'a local folder')}, and only a model of the hub has revisions; leave it out.",
        )


def _check_accelerator_config(value: Any) -> None:
    from accelerate.utils import GradientAccumulationPlugin
    from transformers.trainer_pt_utils import AcceleratorConfig

    if isinstance(value, type):
        raise SettingError("accelerator_config", f"is the class {value.__name__}; give a mapping or an object of it.")
    given = mapping_of(
        "accelerator_config", value, """'{"split_batches": true}' or the path of a JSON file""", file=True
    )
    if not given:
        return
    check_names("accelerator_config", given, [field.name for field in fields(AcceleratorConfig)])
    try:
        check_settings(AcceleratorConfig(**given))
    except SettingError as error:
        raise SettingError("accelerator_config", f"has the key {error.setting}, which {error.problem}") from error
    inner = given.get("gradient_accumulation_kwargs") or {}
    known = [field.name for field in fields(GradientAccumulationPlugin) if field.name != "num_steps"]
    if "num_steps" in inner:
        raise SettingError("accelerator_config", "gives num_steps; give gradient_accumulation_steps instead.")
    check_names("accelerator_config", inner, known, " among gradient_accumulation_kwargs")


def check_together(args: "TrainingArguments") -> None:
    """
    Check what Transformers, torch or accelerate would refuse later, or pass over without a word.

    Args:
        args (`TrainingArguments`): as they were given, before Transformers works on them.

    Raises:
        SettingError: for the first that does not fit the others.
    """
    check_mappings(args)
    if hasattr(args, "layer_selection"):
        settle_layers(args)
    _check_trackers(args.report_to)
    _check_launch(args)
    _check_workers(args)
    _check_evaluation(args)
    _check_precision(args)
    _check_compilation(args)


def _check_trackers(report_to: Any) -> None:
    from transformers.integrations import get_available_reporting_integrations

    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    available = get_available_reporting_integrations()
    for name in names:
        if name in ("all", "none") and len(names) == 1:
            continue
        if name in available:
            continue
        if name in _TRACKERS:
            here = ", ".join([*available, "none"])
            raise SettingError(
                "report_to", f"names {name!r}, which is not installed here; pip install {_TRACKERS[name]}, or choose "
                f"from {here}."
            )  # fmt: skip
        close = nearest(str(name), list(_TRACKERS), 0.75)
        raise SettingError(
            "report_to",
            f"names {shown(name)}, which is no tracker that Transformers knows; choose from "
            f"{', '.join([*sorted(_TRACKERS), 'none'])}.{close}",
        )


def _check_launch(args: "TrainingArguments") -> None:
    launched = any(os.environ.get(name) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    for name, config in (("fsdp", "fsdp2"), ("fsdp_config", "fsdp2"), ("deepspeed", "zero2")):
        if getattr(args, name) and not launched:
            raise SettingError(
                name, f"needs a launcher, which this process was not started by; give --accelerate_config {config} "
                "instead, or start with accelerate launch, torchrun or deepspeed."
            )  # fmt: skip
    if args.ddp_backend and not launched:
        raise SettingError(
            "ddp_backend", "belongs to a run in several processes, and this is one process; leave it out."
        )
    if args.fsdp_config and not args.fsdp:
        raise SettingError(
            "fsdp_config", "would have no effect without fsdp; set both, or use --accelerate_config fsdp2."
        )


def _check_workers(args: "TrainingArguments") -> None:
    if args.dataloader_num_workers == 0:
        for name in (
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
            "dataloader_multiprocessing_context",
        ):
            if getattr(args, name):
                raise SettingError(name, "belongs to dataloader_num_workers, which is 0; set that to 1 or more, too.")
    known = args.dataloader_multiprocessing_context
    if known is not None:
        import multiprocessing

        if known not in multiprocessing.get_all_start_methods():
            raise SettingError("dataloader_multiprocessing_context", f"is {known}, which this system does not have.")


def _check_evaluation(args: "TrainingArguments") -> None:
    evaluates, saves = str(plain(args.eval_strategy)), str(plain(args.save_strategy))
    scheduler = str(plain(args.lr_scheduler_type))
    metric = args.metric_for_best_model
    needs = "needs an evaluation to go by; set eval_strategy to steps or epoch, too."
    if evaluates == "no":
        if args.load_best_model_at_end:
            raise SettingError("load_best_model_at_end", needs)
        if saves == "best":
            raise SettingError("save_strategy", f"is best, which {needs}")
        if metric is not None:
            raise SettingError("metric_for_best_model", needs)
        if scheduler in ("reduce_lr_on_plateau", "greedy"):
            raise SettingError("lr_scheduler_type", f"is {scheduler}, which {needs}")
        if args.do_eval:
            raise SettingError("do_eval", "would have no effect; set eval_strategy to steps or epoch instead.")
    if saves == "best" and metric is None:
        raise SettingError(
            "save_strategy", "is best, which needs metric_for_best_model: loss, or a metric of the task."
        )
    if args.greater_is_better is not None and metric is None:
        raise SettingError(
            "greater_is_better", "belongs to metric_for_best_model, which is not set; set both, or none."
        )
    if args.load_best_model_at_end and saves != "best":
        if evaluates != saves:
            raise SettingError(
                "load_best_model_at_end",
                f"needs equal eval_strategy and save_strategy, but they are {evaluates} and {saves}.",
            )
        every = args.eval_steps or args.logging_steps
        if evaluates == "steps" and not _is_multiple(args.save_steps, every):
            raise SettingError(
                "load_best_model_at_end",
                f"needs save_steps to be a multiple of eval_steps, but they are {args.save_steps:g} and {every:g}.",
            )
    if evaluates == "steps" and args.eval_steps is None and not args.logging_steps:
        raise SettingError("eval_strategy", "is steps, which needs eval_steps.")
    if scheduler in ("constant", "reduce_lr_on_plateau", "greedy") and args.warmup_steps:
        raise SettingError(
            "warmup_steps", f"would have no effect with lr_scheduler_type {scheduler}; constant_with_warmup has one."
        )
    if scheduler in ("constant", "constant_with_warmup") and args.lr_scheduler_kwargs:
        raise SettingError("lr_scheduler_kwargs", f"would have no effect with lr_scheduler_type {scheduler}.")


def _is_multiple(number: float, of: float) -> bool:
    if (number < 1) != (of < 1):
        return False  # a share of training and a number of updates
    ratio = number / of
    return abs(ratio - round(ratio)) < 1e-9 * max(1.0, ratio) and round(ratio) >= 1


def _check_precision(args: "TrainingArguments") -> None:
    import torch

    if args.fp16 and args.bf16:
        raise SettingError("fp16", "and bf16 are both set; choose one of them.")
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.fp16 and on_cpu:
        raise SettingError("fp16", "needs a GPU, and this run is on the CPU; there, bf16 with use_cpu is possible.")
    if args.bf16 and not args.use_cpu and not torch.accelerator.is_available():
        raise SettingError("bf16", "needs a GPU that has it; to compute in bf16 on the CPU, set use_cpu, too.")


def _check_compilation(args: "TrainingArguments") -> None:
    if args.torch_compile_backend is not None:
        from accelerate.utils import DynamoBackend

        known = [backend.value.lower() for backend in DynamoBackend]
        if args.torch_compile_backend.lower() not in known:
            close = nearest(args.torch_compile_backend, known, 0.6)
            raise SettingError(
                "torch_compile_backend",
                f"is {shown(args.torch_compile_backend)}; it takes one of {', '.join(known)}.{close}",
            )
    modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    if args.torch_compile_mode is not None and args.torch_compile_mode not in modes:
        raise SettingError(
            "torch_compile_mode", f"is {shown(args.torch_compile_mode)}; it takes one of {', '.join(modes)}."
        )


def check_optimizer(args: "TrainingArguments") -> None:
    """
    Make the optimizer and the schedule of the learning rate for one small weight, and take a step.

    Args:
        args (`TrainingArguments`): as Transformers has completed them.

    Raises:
        SettingError: for a package that is missing, names in `optim_args` and `lr_scheduler_kwargs` that are not
            read, and whatever else the two refuse.
    """
    name = str(plain(args.optim))
    defaults = {field.name: field.default for field in fields(args)}
    _check_optim_args(name, args.optim_args)
    if args.optim_target_modules is not None and not name.startswith(("galore", "apollo")):
        raise SettingError(
            "optim_target_modules", f"would have no effect with optim {name}; GaLore and Apollo read it."
        )
    for beta in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if name.startswith(NOT_ADAM) and getattr(args, beta) != defaults[beta]:
            raise SettingError(beta, f"would have no effect with optim {name}, which does not read it.")
    scheduler = str(plain(args.lr_scheduler_type))
    usual = plain(defaults["optim"]), plain(defaults["lr_scheduler_type"])
    if (name, scheduler) == usual and not args.optim_args and not args.lr_scheduler_kwargs:
        return
    _try_optimizer(args, name)
    _try_scheduler(args, scheduler)


def _check_optim_args(name: str, text: Any) -> None:
    if not text:
        return
    # The longest beginning that fits: rmsprop_bnb before rmsprop.
    beginnings = sorted((b for b in OPTIM_ARGS if name.startswith(b)), key=len)
    known = OPTIM_ARGS[beginnings[-1]] if beginnings else ()
    for part in text.replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not equals or not key or not value or "=" in value:
            raise SettingError("optim_args", f"is {shown(text)}; write key=value, and a comma between two.")
        if not known:
            raise SettingError("optim_args", f"would have no effect with optim {name}, which reads none.")
        check_names("optim_args", [key], known)
        if value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity"):
            raise SettingError("optim_args", f"is {shown(text)}, where {key} is not finite; give a number.")


def _try_optimizer(args: "TrainingArguments", name: str) -> None:
    import torch
    from transformers import Trainer

    # A weight of 64 x 64 is the smallest that 8-bit optimizers quantise; random numbers are for the run itself.
    linear = torch.nn.utils.skip_init(torch.nn.Linear, 64, 64, bias=False)
    torch.nn.init.zeros_(linear.weight)
    model: Any = torch.nn.Sequential(linear).to(args.device)
    tried = copy.copy(args)
    if tried.optim_target_modules is not None:
        tried.optim_target_modules = "all-linear"
    setting = "optim_args" if args.optim_args else "optim"
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(tried, model)
        optimizer = kind(**options) if "params" in options else kind(model.parameters(), **options)
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, 1e-3)
        getattr(optimizer, "train", lambda: None)()
        optimizer.step()
    except Exception as error:  # each of 40 optimizers fails in its own way: a package, a device, a value
        raise SettingError(
            setting, f"is {shown(args.optim_args or name)}, which fails: {first_line(error)}."
        ) from error
    return optimizer


def _try_scheduler(args: "TrainingArguments", name: str) -> None:
    import torch
    from transformers import get_scheduler

    setting = "lr_scheduler_kwargs" if args.lr_scheduler_kwargs else "lr_scheduler_type"
    given: Any = args.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            name, optimizer, num_warmup_steps=2, num_training_steps=10, scheduler_specific_kwargs=dict(given or {})
        )
        optimizer.step()
        if name not in ("reduce_lr_on_plateau", "greedy"):  # they step with a metric
            schedule.step()
    except Exception as error:
        problem = f"is {shown(given)}, which lr_scheduler_type {name} refuses" if given else f"is {name}, which fails"
        raise SettingError(setting, f"{problem}: {first_line(error)}.") from error


def check_best_metric(args: "TrainingArguments", names: Sequence[str]) -> None:
    """
    Check that the evaluation gives the metric that the best model goes by.

    Args:
        args (`TrainingArguments`): the settings of a run.
        names (`Sequence[str]`): metrics that an evaluation gives, without `eval_`, the primary one first; `loss` is
            always there.

    Raises:
        SettingError: if it does not.
    """
    metric = args.metric_for_best_model
    known = ["loss", *names]
    if metric is not None and metric.removeprefix("eval_") not in known:
        advice = nearest(metric.removeprefix("eval_"), known, 0.6)
        if not advice and names:
            advice = f" The primary metric is {names[0]}."
        raise SettingError(
            "metric_for_best_model", f"is {shown(metric)}, but an evaluation here gives {', '.join(known)}.{advice}"
        )
