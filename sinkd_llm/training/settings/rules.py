"""What each setting may be: ranges of numbers, and settings of other tools that have no effect here.

One table for `SinKDConfig` (with all of `transformers.TrainingArguments`), TRL's `ModelConfig` and the arguments of
every command; [`~sinkd_llm.training.settings.checks`] holds the values against it. No name stands for two things.
"""

import math
from typing import Any

from sinkd_llm.ranges import OF_THE_LOSS, Range

# More updates, rows or bytes than any run has; counters of 32 and 64 bits are far above it.
MANY = 1_000_000_000


_COUNT = Range(1, MANY, whole=True)
_BATCH = Range(1, 1_000_000, whole=True)
_SEED = Range(0, 2**32 - 1, whole=True)
_STEPS = Range(0, MANY, above=True, shares=True)
_BETA = Range(0, 1, below=True)
_PROCESSES = Range(1, 1024, whole=True)
_ROWS = Range(1, 10**12, whole=True, advice="give 1 or more, or leave it out for all rows")

RANGES: dict[str, Range] = {
    # transformers.TrainingArguments
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "num_train_epochs": Range(0, 1_000_000, above=True),
    "max_steps": Range(1, MANY, whole=True, also=(-1,), advice="give 1 or more, or -1 to go by num_train_epochs"),
    "learning_rate": Range(0, 100, above=True),
    "warmup_steps": Range(0, MANY, shares=True),
    "weight_decay": Range(0, 100),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": Range(0, 1, above=True),
    # Clipped to less, a gradient moves no weight in fp32; 0 switches clipping off.
    "max_grad_norm": Range(1e-6, 1_000_000, also=(0,)),
    "neftune_noise_alpha": Range(0, 1000, above=True),
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_delay": Range(0, MANY),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": Range(1, MANY, whole=True, advice="give 1 or more, or leave it out to keep all checkpoints"),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 1024, whole=True),
    "dataloader_prefetch_factor": Range(1, 10_000, whole=True),
    "ddp_bucket_cap_mb": Range(1, 1_000_000, whole=True),
    "ddp_timeout": Range(1, 10**8, whole=True),
    # SinKDConfig
    "student_layers": Range(1, 100_000, whole=True, advice="a student has at least one layer"),
    "student_decoder_layers": Range(1, 100_000, whole=True, advice="a student has at least one layer"),
    "layer_selection_rows": Range(1, 1_000_000, whole=True),
    "cache_tolerance": Range(0, MANY, above=True, advice="give a positive number, 2 to never warn"),
    "max_length": Range(
        2,
        10_000_000,
        whole=True,
        advice="a prompt and an answer need at least 2 tokens and no model reads more than 10,000,000; null means the "
        "model's own context",
    ),
    "dataset_num_proc": _PROCESSES,
    "pad_to_multiple_of": Range(1, 1_000_000, whole=True),
    **OF_THE_LOSS,
    "transport_group_size": Range(
        2,
        MANY,
        whole=True,
        also=(0,),
        advice=f"give a whole number from 2 to {MANY:,} (a group of one token has nothing to transport), or 0 to cut "
        "no transport problem",
    ),
    "unlabelled_ratio": Range(0, 1),
    "teacher_samples": Range(0, 1_000, whole=True),
    "teacher_rows_per_request": Range(1, 1_000, whole=True),
    "teacher_max_requests": _COUNT,
    "teacher_concurrency": Range(1, 1_000, whole=True),
    # trl.ModelConfig
    "lora_r": Range(1, 100_000, whole=True),
    "lora_alpha": Range(1, 1_000_000, whole=True),
    "lora_dropout": Range(0, 1, below=True),
    # commands
    "max_train_samples": _ROWS,
    "max_eval_samples": _ROWS,
    "max_unlabelled_samples": _ROWS,
    "labels_per_class": _COUNT,
    "heldout_share": Range(0, 1, below=True),
    "validation_share": Range(0, 1, below=True),
    "merge_weights": Range(0, 1_000_000, above=True),
    "teacher_num_fewshot": Range(0, 10_000, whole=True),
    "balance_strength": Range(0, 1),
    "teacher_examined_rows": Range(0, MANY, whole=True),
    "top_k": Range(1, 100_000_000, whole=True),
    "temperatures": OF_THE_LOSS["temperature"],
    "vocabulary_size": Range(1, 100_000_000, whole=True),
    "batch_size": _BATCH,
    "num_processes": Range(1, 10_000, whole=True, advice="give a whole number from 1 on, at most 10,000"),
    "num_devices": Range(1, 1_000_000, whole=True, advice="give 1 or more, at most 1,000,000"),
    "limit": Range(1, MANY, whole=True, advice=f"give 1 or more, at most {MANY:,}"),
}

# Settings of text whose choices TRL does not name.
CHOICES: dict[str, tuple[str, ...]] = {
    "lora_task_type": ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "bnb_4bit_quant_storage": ("uint8", "float16", "bfloat16", "float32"),
}

_OWN_LOSS = "the losses here are computed from logits and not by the model or by Trainer"
_SCORES = "evaluation ranks the answers here, and takes what it needs from the batch itself"
_SCRIPTS = "only the example scripts of Transformers read it"

# Setting -> (values it may have beside its default, why every other is refused).
NO_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0, None), f"it would have no effect: {_OWN_LOSS}"),
    "use_liger_kernel": ((False,), f"it would replace the forward that gives the logits: {_OWN_LOSS}"),
    "liger_kernel_config": ((None,), f"it belongs to use_liger_kernel, which is refused: {_OWN_LOSS}"),
    "label_names": ((None,), f"it would have no effect or hide the evaluation loss: {_OWN_LOSS}"),
    "prediction_loss_only": ((False,), f"it would have no effect: {_SCORES}"),
    "include_for_metrics": (([], None), f"it would have no effect: {_SCORES}"),
    "batch_eval_metrics": ((False,), f"a task's metrics are over all rows, not over batches: {_SCORES}"),
    "eval_do_concat_batches": ((True,), "the metrics here take all rows together"),
    "eval_use_gather_object": ((False,), "the scores here are tensors, which are gathered as they are"),
    "remove_unused_columns": ((False,), "it would remove the columns that batches are made of"),
    "length_column_name": (("length",), "it would have no effect: the tokens of each row are counted here"),
    "auto_find_batch_size": (
        (False,),
        "a smaller batch is another transport problem, so none is chosen silently; see 'sinkd env --estimate'",
    ),
    "bf16_full_eval": ((False,), "it would turn the student itself into bf16; give --dtype bfloat16 for that"),
    "fp16_full_eval": ((False,), "it would turn the student itself into fp16; give --dtype float16 for that"),
    "enable_jit_checkpoint": ((False,), "a run saves and stops at SIGTERM by itself"),
    "do_train": ((False,), f"it would have no effect: {_SCRIPTS}"),
    "do_predict": ((False,), f"it would have no effect: {_SCRIPTS}"),
    "local_rank": ((-1,), "it would have no effect: a launcher tells a process its rank by LOCAL_RANK"),
}

# Setting -> the switch without which nothing reads it.
NEEDS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
            *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
        ),
        "use_peft",
    ),
    **dict.fromkeys(("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), "load_in_4bit"),
}

# What nothing reads without a teacher. It is not refused: a recipe may be for runs with a teacher and without one.
NEEDS_TEACHER: tuple[str, ...] = (
    *("alpha", "divergence", "temperature"),
    *("sinkhorn_weight", "sinkhorn_temperature", "sinkhorn_epsilon", "sinkhorn_iterations", "sinkhorn_threshold"),
    *("sinkhorn_gradient", "cost_norm", "transport_scope", "transport_group_size"),
    *("transport_across_devices", "transport_accumulation", "group_column"),
    *("transported_weight", "transported_temperature", "transported_epsilon", "transported_iterations"),
    *("transported_anchor", "transported_coupling"),
    *("hidden_weight", "queue_weight", "queue_size", "queue_temperature", "queue_teacher_temperature"),
    *("vocabulary", "cache_tolerance", "teacher_model_revision", "teacher_model_init_kwargs"),
    *("teacher_load_in_4bit", "teacher_load_in_8bit", "teacher_deepspeed"),
    *("teacher_model", "teacher_samples", "teacher_max_requests", "teacher_concurrency", "teacher_way"),
    "teacher_rows_per_request",
    *("signal", "choice_normalisation", "unlabelled_ratio"),
)

# Values of settings that are otherwise fine.
REFUSED_VALUES: dict[tuple[str, str], str] = {
    ("debug", "tpu_metrics_debug"): "it is for TPUs, where nothing of this was tried",
    # They change weights during the backward pass, before the gradient is whole, clipped or checked.
    **{
        ("optim", name): "it changes weights before the gradient is clipped and checked"
        for name in (
            *("lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise"),
            *("galore_adafactor_layerwise", "apollo_adamw_layerwise"),
        )
    },
}

# Optimizer names that begin so -> the keys of optim_args that they read; the others read none.
OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    "paged_ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    "galore": ("rank", "update_proj_gap", "scale", "proj_type"),
    "apollo": ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "schedule_free": ("weight_lr_power", "r"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
    "adamw_torch_4bit": ("block_size", "bf16_stochastic_round"),
    "adamw_torch_8bit": ("block_size", "bf16_stochastic_round"),
    "adamw_anyprecision": ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
    "rmsprop_bnb": (),  # Transformers passes them on as text, which it does not take
}
# Optimizer names that begin so read no adam_beta1, adam_beta2 and adam_epsilon.
NOT_ADAM = ("sgd", "adagrad", "rmsprop", "adafactor", "galore", "grokadamw", "schedule_free_sgd")

# Environment variables that a recipe may not set: they decide which code runs, or are the launcher's own.
REFUSED_ENVIRONMENT = (
    *("LD_*", "DYLD_*", "PYTHON*", "PATH", "HOME", "SHELL", "BASH_ENV", "ENV", "IFS", "GCONV_PATH", "OPENSSL_*"),
    *("CC", "CXX", "CUDA_HOME", "CUDA_PATH", "TRITON_*", "TORCHINDUCTOR_*", "TORCH_EXTENSIONS_DIR", "GIT_*"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_*", "ACCELERATE_*", "SINKD_DEBUG"),
)

# What other tools call a flag -> what it is called here: the first of these that a command has. Where it has none,
# nothing is suggested.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate_init", "max_lr", "peak_lr"), ("learning_rate",)),
    **dict.fromkeys(("beta", "sinkhorn_beta", "ot_weight", "sd_weight"), ("sinkhorn_weight",)),
    **dict.fromkeys(("batch_size", "bs", "b", "batch", "batchsize", "train_batch_size", "per_gpu_train_batch_size",
                     "micro_batch_size", "per_device_batch_size"), ("per_device_train_batch_size", "batch_size")),
    **dict.fromkeys(("eval_batch_size", "per_gpu_eval_batch_size", "per_device_eval_batch_size"),
                    ("per_device_eval_batch_size", "batch_size")),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs", "max_epochs"), ("num_train_epochs",)),
    **dict.fromkeys(("steps", "num_steps", "n_steps", "train_steps", "num_train_steps", "max_train_steps",
                     "total_steps", "iters", "max_iters"), ("max_steps",)),
    **dict.fromkeys(("model", "model_name", "model_path", "model_id", "model_dir", "m", "student", "student_model",
                     "student_path", "base_model", "pretrained", "student_name_or_path", "checkpoint_path",
                     "student_model_name_or_path"), ("model_name_or_path",)),
    **dict.fromkeys(("teacher", "teacher_model_name", "teacher_name", "teacher_path", "teacher_name_or_path",
                     "teacher_model_path", "teacher_id", "teacher_model"), ("teacher_model_name_or_path",)),
    **dict.fromkeys(("data", "data_path", "data_folder", "datadir"), ("data_dir", "dataset_name")),
    **dict.fromkeys(("dataset", "train_file", "dataset_path", "train_data", "training_file", "csv"),
                    ("dataset_name", "task")),
    **dict.fromkeys(("task_name", "tasks", "task_file"), ("task",)),
    **dict.fromkeys(("validation_file", "eval_file", "test_file", "dev_file", "eval_data"), ()),
    **dict.fromkeys(("train_split",), ("dataset_train_split",)),
    **dict.fromkeys(("test_split", "eval_split", "val_split"), ("dataset_test_split", "split")),
    **dict.fromkeys(("lora_rank", "rank", "lora_dim", "r"), ("lora_r",)),
    **dict.fromkeys(("lora", "peft", "use_lora"), ("use_peft",)),
    **dict.fromkeys(("grad_accum", "grad_acc", "accumulation_steps", "gradient_accumulation", "grad_accum_steps"),
                    ("gradient_accumulation_steps",)),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad_norm", "gradient_clipping"), ("max_grad_norm",)),
    **dict.fromkeys(("output", "out", "o", "save_dir", "out_dir", "output_path", "save_path", "output_file", "outdir"),
                    ("output_dir", "output")),
    **dict.fromkeys(("output_dir",), ("output",)),
    **dict.fromkeys(("warmup", "warmup_ratio", "num_warmup_steps"), ("warmup_steps",)),
    **dict.fromkeys(("wd", "decay"), ("weight_decay",)),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), ("lr_scheduler_type",)),
    **dict.fromkeys(("optimizer", "optimiser"), ("optim",)),
    **dict.fromkeys(("tau", "kd_temperature", "temp", "T"), ("temperature",)),
    **dict.fromkeys(("eps", "epsilon", "reg"), ("sinkhorn_epsilon",)),
    **dict.fromkeys(("iterations", "sinkhorn_iters", "n_iters"), ("sinkhorn_iterations",)),
    **dict.fromkeys(("loss", "loss_type", "kd_loss", "objective"), ("divergence",)),
    **dict.fromkeys(("kd_weight", "kl_weight", "distill_weight", "kd_alpha", "lmbda", "kd_ratio"), ("alpha",)),
    **dict.fromkeys(("gpus", "num_gpus", "nproc", "nproc_per_node", "n_gpu"), ("num_processes", "num_devices")),
    **dict.fromkeys(("load_4bit", "4bit", "use_4bit"), ("load_in_4bit",)),
    **dict.fromkeys(("load_8bit", "8bit", "use_8bit"), ("load_in_8bit",)),
    **dict.fromkeys(("torch_dtype", "precision", "fp32"), ("dtype",)),
    **dict.fromkeys(("resume", "resume_from", "checkpoint"), ("resume_from_checkpoint",)),
    **dict.fromkeys(("overwrite", "force", "f"), ("overwrite_output_dir", "overwrite")),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "cutoff_len", "model_max_length", "block_size", "seq_length",
                     "seq_len", "context_length"), ("max_length",)),
    **dict.fromkeys(("evaluation_strategy", "do_eval", "evaluate"), ("eval_strategy",)),
    **dict.fromkeys(("eval_every", "eval_interval"), ("eval_steps",)),
    **dict.fromkeys(("save_every", "save_interval"), ("save_steps",)),
    **dict.fromkeys(("layers", "num_layers", "n_layers"), ("student_layers",)),
    **dict.fromkeys(("cpu", "no_cuda"), ("use_cpu",)),
    **dict.fromkeys(("cache", "cache_dir"), ("teacher_cache",)),
    **dict.fromkeys(("teacher_api", "api_base", "base_url"), ("teacher_url",)),
    **dict.fromkeys(("unlabeled_file", "unlabelled", "unlabeled"), ("unlabelled_file",)),
    **dict.fromkeys(("validation_split_ratio", "val_ratio", "val_size", "test_size", "val_share", "eval_share"),
                    ("validation_share",)),
    **dict.fromkeys(("random_seed", "random_state"), ("seed",)),
    **dict.fromkeys(("logging", "log_steps", "log_interval", "log_every"), ("logging_steps",)),
    **dict.fromkeys(("wandb", "tracker", "log_with", "use_wandb"), ("report_to",)),
    **dict.fromkeys(("samples", "num_samples", "max_samples", "n_rows"),
                    ("max_train_samples", "max_eval_samples", "limit")),
    **dict.fromkeys(("limit",), ("max_eval_samples",)),
    **dict.fromkeys(("dry", "dryrun", "n", "check_only"), ("dry_run",)),
    **dict.fromkeys(("config_file", "cfg", "c", "recipe", "yaml"), ("config", "estimate")),
    **dict.fromkeys(("verbose", "quiet", "v", "device", "fp8", "threads"), ()),
    "group_by_length": ("train_sampling_strategy",),
}  # fmt: skip


def is_finite(value: Any) -> bool:
    """Whether no number in `value`, however deep, is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
