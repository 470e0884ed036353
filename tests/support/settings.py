"""A value of each setting of `TrainingArguments` that training goes by."""

# What becomes of each setting of TrainingArguments: a value that `SinKDConfig` takes and training goes by, or one that
# it refuses because it would have no effect or break something. A setting that Transformers adds is missing here, and
# the test that says so is where its verdict is to be given.
USED = {
    **{"output_dir": "x", "per_device_train_batch_size": 2, "num_train_epochs": 0.5, "max_steps": 3},
    **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "optim": "sgd", "weight_decay": 0.1},
    **{"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "gradient_accumulation_steps": 2},
    **{"average_tokens_across_devices": False, "max_grad_norm": 0.5, "tf32": False, "torch_compile": False},
    **{"activation_checkpointing": True, "gradient_checkpointing": True, "torch_compile_backend": "eager"},
    **{"torch_compile_mode": "default", "use_cache": True, "neftune_noise_alpha": 5.0, "torch_empty_cache_steps": 1},
    **{"logging_strategy": "epoch", "logging_steps": 0.5, "logging_first_step": True, "log_on_each_node": False},
    **{"logging_nan_inf_filter": False, "include_num_input_tokens_seen": "all", "log_level": "info"},
    **{"log_level_replica": "error", "disable_tqdm": True, "report_to": "none", "run_name": "x", "project": "x"},
    **{"trackio_space_id": "x", "trackio_bucket_id": "x", "trackio_static_space_id": False, "eval_strategy": "epoch"},
    **{"eval_steps": 4, "eval_delay": 2, "per_device_eval_batch_size": 4, "eval_on_start": True},
    **{"eval_accumulation_steps": 2, "save_only_model": True, "save_strategy": "epoch", "save_steps": 5},
    **{"save_on_each_node": True, "save_total_limit": 2, "push_to_hub": False, "hub_token": "x"},
    **{"hub_private_repo": True, "hub_model_id": "a/b", "hub_strategy": "end", "hub_always_push": True},
    **{"hub_revision": "main", "ignore_data_skip": True, "restore_callback_states_from_checkpoint": True},
    **{"full_determinism": False, "seed": 3, "data_seed": 4, "use_cpu": True},
    **{"accelerator_config": {"even_batches": False}},
    **{"parallelism_config": None, "dataloader_drop_last": True, "dataloader_num_workers": 1},
    **{"dataloader_pin_memory": False, "dataloader_in_order": False, "train_sampling_strategy": "sequential"},
    **{"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 25, "ddp_broadcast_buffers": False},
    **{"ddp_static_graph": True, "ddp_timeout": 60, "debug": "underflow_overflow"},
    **{"skip_memory_metrics": False, "resume_from_checkpoint": "true"},
}  # fmt: skip
# Used together with another setting, or only where there is a GPU or a launcher.
USED_WITH_OTHERS = {
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}},
    "optim_args": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "activation_checkpointing_kwargs": {"activation_checkpointing": True}
    | {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True}
    | {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "bf16": {"bf16": True, "use_cpu": True},
    "load_best_model_at_end": {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "metric_for_best_model": {"metric_for_best_model": "acc", "eval_strategy": "epoch"},
    "greater_is_better": {"metric_for_best_model": "acc", "greater_is_better": True, "eval_strategy": "epoch"},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_multiprocessing_context": "fork", "dataloader_num_workers": 1},
    "do_eval": {"do_eval": True, "eval_strategy": "epoch"},
}
