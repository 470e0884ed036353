"""Every setting of Transformers, TRL and ours is used, or refused by its name, from wherever it comes."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from transformers import TrainingArguments
from trl import ModelConfig

from sinkd_llm import SinKDConfig
from sinkd_llm.errors import InputError, SettingError, shown
from sinkd_llm.library_errors import naming_settings
from sinkd_llm.runs.arguments import CacheArguments, EvaluateArguments, LaunchArguments, TaskArguments
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.combinations import check_best_metric
from sinkd_llm.training.settings.rules import NEEDS, NO_EFFECT, RANGES
from tests.support.settings import USED, USED_WITH_OTHERS

REFUSED_HERE = {"fp16": True, "fsdp": "full_shard", "fsdp_config": {"a": 1}, "deepspeed": {"a": 1}}
REFUSED_HERE |= {"ddp_backend": "gloo"}
REFUSED_HERE |= {"optim_target_modules": "all-linear"}
REFUSED = {
    **{"label_smoothing_factor": 0.1, "bf16_full_eval": True, "fp16_full_eval": True, "use_liger_kernel": True},
    **{"liger_kernel_config": {"rope": True}, "auto_find_batch_size": True, "prediction_loss_only": True},
    **{"eval_do_concat_batches": False, "eval_use_gather_object": True, "include_for_metrics": ["loss"]},
    **{"batch_eval_metrics": True, "enable_jit_checkpoint": True, "remove_unused_columns": True, "label_names": ["x"]},
    **{"length_column_name": "size", "do_train": True, "do_predict": True, "local_rank": 0},
}
COMMANDS = (SinKDConfig, ModelConfig, TaskArguments, CacheArguments, EvaluateArguments, LaunchArguments)


def made(tmp_path, **settings):
    return SinKDConfig(**{"output_dir": str(tmp_path), "report_to": "none", **settings})


def test_every_setting_of_transformers_has_a_verdict():
    known = {*USED, *USED_WITH_OTHERS, *REFUSED_HERE, *REFUSED}
    assert {field.name for field in dataclasses.fields(TrainingArguments)} - known == set()
    assert set(NO_EFFECT) == set(REFUSED)


@pytest.mark.parametrize("name", USED)
def test_what_is_used_is_taken(name, tmp_path):
    assert name in {field.name for field in dataclasses.fields(made(tmp_path, **{name: USED[name]}))}


@pytest.mark.parametrize("name", USED_WITH_OTHERS)
def test_what_is_used_with_others_is_taken(name, tmp_path):
    assert getattr(made(tmp_path, **USED_WITH_OTHERS[name]), name) is not None


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_HERE])
def test_what_would_have_no_effect_is_refused(name, tmp_path):
    with pytest.raises(SettingError, match=f"^{name} "):
        made(tmp_path, **{name: (REFUSED | REFUSED_HERE)[name]})


def numeric():
    """Each setting that is a number, of all commands."""
    for kind in COMMANDS:
        for field in dataclasses.fields(kind):
            if any(word in str(field.type) for word in ("int", "float")) and "dict" not in str(field.type):
                yield field.name


def test_every_number_has_a_range():
    words = {"include_num_input_tokens_seen", "hub_private_repo", "local_rank", "label_smoothing_factor"}
    assert set(numeric()) - set(RANGES) - words == set()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1.5, 2**63, 10**5000], ids=shown)
@pytest.mark.parametrize("name", sorted(RANGES.keys() & {field.name for field in dataclasses.fields(SinKDConfig)}))
def test_numbers_that_nothing_can_be_computed_with(name, value, tmp_path):
    if name == "cache_tolerance" and value == 2**63:
        value = 1e30
    with pytest.raises(SettingError) as raised:
        made(tmp_path, **{name: value})
    assert raised.value.setting == name
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["lora_r", "lora_alpha", "lora_dropout"])
@pytest.mark.parametrize("value", [-1, 10**9, math.nan])
def test_numbers_of_an_adapter(name, value):
    with pytest.raises(SettingError, match=f"^{name} is"):
        check_settings(ModelConfig(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_r", 8), ("lora_alpha", 8), ("lora_dropout", 0.0), ("lora_target_modules", ["nope"]),
        ("lora_target_parameters", ["x"]), ("lora_modules_to_save", ["x"]), ("lora_task_type", "SEQ_CLS"),
        ("use_rslora", True), ("use_dora", True), ("bnb_4bit_quant_type", "fp4"), ("use_bnb_nested_quant", True),
        ("bnb_4bit_quant_storage", "uint8"),
    ],
)  # fmt: skip
def test_what_needs_a_switch_is_refused_without_it(name, value):
    with pytest.raises(SettingError, match=f"^{name} is .*would have no effect: it needs --{NEEDS[name]}"):
        check_settings(ModelConfig(**{name: value}))
    check_settings(ModelConfig(**{name: value, NEEDS[name]: True}))


def test_every_setting_that_needs_a_switch_is_one_of_trl():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {*NEEDS, *NEEDS.values()} <= fields
    assert {name for name in fields if name.startswith(("lora_", "bnb_"))} <= set(NEEDS)


@pytest.mark.parametrize("value", [1e-30, 1e-7])
def test_a_gradient_is_not_clipped_to_nothing(value, tmp_path):
    with pytest.raises(SettingError, match=r"^max_grad_norm is"):
        made(tmp_path, max_grad_norm=value)
    assert made(tmp_path, max_grad_norm=0.0).max_grad_norm == 0


def test_only_models_of_the_hub_have_revisions(tmp_path):
    with pytest.raises(SettingError, match=r"^teacher_model_revision is 'v1', .* a bundled model"):
        made(tmp_path, teacher_model_name_or_path="smollm2-135m", teacher_model_revision="v1")
    assert made(tmp_path, teacher_model_name_or_path="a/b", teacher_model_revision="v1").teacher_model_revision == "v1"


@pytest.mark.parametrize(("name", "value"), [("alpha", 7), ("learning_rate", math.nan), ("optim", "nope")])
def test_settings_that_were_changed_are_checked_again(name, value, tmp_path):
    args = made(tmp_path)
    args.check()
    setattr(args, name, value)
    with pytest.raises(SettingError, match=f"^{name} is") as raised:
        args.check()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("settings", [{"lora_task_type": "FOO"}, {"bnb_4bit_quant_storage": "x"}, {"dtype": "int3"}])
def test_names_that_trl_takes_and_a_library_refuses_later(settings):
    with pytest.raises(SettingError, match=f"^{next(iter(settings))} is '.*'; it takes one of "):
        check_settings(ModelConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "x"}, "seed is 'x', but it takes a whole number"),
        ({"seed": True}, "seed is True"),
        ({"seed": None}, "seed is null, but it takes a whole number; leave it out for the default, 42"),
        ({"max_steps": 2.5}, "max_steps is 2.5, but it takes a whole number"),
        ({"max_steps": 0}, "max_steps is 0; give 1 or more, or -1"),
        ({"alpha": "0.5"}, "alpha is '0.5', but it takes a number"),
        ({"bf16": 1}, "bf16 is 1, but it takes true or false"),
        ({"divergence": "klx"}, "divergence is 'klx'; it takes one of kl, rkl, js, tvd, "),
        ({"eval_strategy": "often"}, "eval_strategy is 'often'; it takes one of no, steps, epoch"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"output_dir": "a\0b"}, "output_dir holds a NUL"),
        ({"output_dir": "a\udcff"}, "output_dir is 'a\\udcff', which is not UTF-8"),
        ({"output_dir": "x" * 3000}, "output_dir has 3,000 characters"),
        ({"label_names": "x"}, "label_names"),
        ({"hub_token": 5}, "hub_token is ***, but it takes text"),
        ({"hub_token": "***"}, "hub_token is '***', which stands for a secret"),
        ({"lr_scheduler_kwargs": '{"a": }'}, "write '{\"num_cycles\": 2}'"),
        ({"lr_scheduler_kwargs": '{"a": 1, "a": 2}'}, "a key is given twice"),
        ({"lr_scheduler_kwargs": '{"a": NaN}'}, "not finite"),
        ({"lr_scheduler_kwargs": "[" * 10_000}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"nope": 1}}, "lr_scheduler_kwargs is {'nope': 1}"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type is cosine_with_min_lr, which fails"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "warmup_steps would have no effect"),
        ({"accelerator_config": {"nope": 1}}, "accelerator_config has the unknown key 'nope'"),
        ({"accelerator_config": {"split_batches": "x"}}, "accelerator_config has the key split_batches"),
        ({"accelerator_config": "absent.json"}, "accelerator_config names the file 'absent.json'"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"nope": 1}}}, "'nope' among gradient_accumulation"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "without gradient_checkpointing"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"a": 1}}, "unknown key 'a'"),
        ({"model_init_kwargs": {"torch_dtype": "float32"}}, "called 'dtype' now"),
        ({"teacher_model_init_kwargs": {"nope": 1}}, "teacher_model_init_kwargs has the unknown key 'nope'"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim_args is 'momentum'; write key=value"),
        ({"optim": "sgd", "optim_args": "momentun=1"}, "Did you mean 'momentum'?"),
        ({"optim": "sgd", "optim_args": "momentum=x"}, "optim_args is 'momentum=x', which fails"),
        ({"optim_args": "momentum=1"}, "optim_args would have no effect with optim adamw_torch_fused"),
        ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1 would have no effect with optim sgd"),
        ({"optim": "lomo"}, "optim is lomo, which is refused"),
        ({"optim": "galore_adamw"}, "optim is 'galore_adamw', which fails: You need to install"),
        ({"report_to": "foo"}, "report_to names 'foo', which is no tracker that Transformers knows"),
        (
            {"train_sampling_strategy": "batch_rebalance"},
            "train_sampling_strategy is 'batch_rebalance'; it takes one of",
        ),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs an evaluation"),
        ({"metric_for_best_model": "nope"}, "metric_for_best_model needs an evaluation"),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, "save_strategy is best, which needs metric_for_best"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor belongs to dataloader_num_workers"),
        ({"torch_compile_backend": "x"}, "torch_compile_backend is 'x'"),
        ({"torch_compile_mode": "x"}, "torch_compile_mode is 'x'"),
        ({"debug": "x"}, "debug is 'x'"),
        ({"parallelism_config": "x"}, "parallelism_config is 'x'"),
        ({"logging_steps": 1.5}, "logging_steps is 1.5; from 1 on it counts updates"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message, tmp_path):
    with pytest.raises(InputError) as raised:
        made(tmp_path, **settings)
    assert message in str(raised.value)
    assert "pip install foo" not in str(raised.value)


def test_a_copy_of_checked_settings_is_checked_again(tmp_path):
    args = made(tmp_path, eval_strategy="steps", gradient_checkpointing=True, debug="underflow_overflow")
    assert dataclasses.replace(args, seed=7).seed == 7


def test_a_secret_is_not_pickled(tmp_path):
    args = made(tmp_path, hub_token="hf_secret", push_to_hub=False)
    assert b"hf_secret" not in pickle.dumps(args)
    assert pickle.loads(pickle.dumps(args)).output_dir == args.output_dir
    assert copy.deepcopy(args).hub_token == "hf_secret"


def test_the_metric_of_the_best_model_is_one_of_the_evaluation(tmp_path):
    args = made(tmp_path, metric_for_best_model="eval_acc", eval_strategy="epoch")
    check_best_metric(args, ["acc"])
    with pytest.raises(SettingError, match=r"^metric_for_best_model is 'eval_acc', but .* gives loss, f1\."):
        check_best_metric(args, ["f1"])


def test_a_library_s_error_names_the_setting():
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    config = LoraConfig(r=0, target_modules=["0"])
    message = "^lora_r is 0, which peft refuses: `r` should be a positive integer"
    with pytest.raises(SettingError, match=message), naming_settings(ModelConfig(lora_r=0)):
        get_peft_model(model, config)


def test_an_error_of_our_own_keeps_its_traceback():
    from sinkd_llm.errors import nearest

    with pytest.raises(TypeError), naming_settings(ModelConfig()):
        nearest(None, [])  # type: ignore[arg-type]


def test_long_values_are_shown_short():
    assert shown("x" * 100_000) == repr("x" * 100_000)[:120] + "… (100,002 characters)"


def test_an_evaluation_may_be_switched_off_later(tmp_path):
    args = made(tmp_path, eval_strategy="steps", eval_steps=2)
    args.eval_strategy = "no"
    args.check()
    assert not args.do_eval
