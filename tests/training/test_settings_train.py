"""Settings that are taken are gone by: a short training runs with each, and those that change it do change it."""

import hashlib

import pytest
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer, load_task
from tests.support.settings import USED, USED_WITH_OTHERS

# Settings of a launch, of trackers and of the hub, whose doing is not seen in one process without a network; and
# settings of the length of a run, which is short here.
ELSEWHERE = {
    *("output_dir", "max_steps", "num_train_epochs", "parallelism_config", "resume_from_checkpoint"),
    *("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("push_to_hub", "torch_compile_backend", "torch_compile_mode"),  # compiled training has its own test below
}
CHANGES = {
    **{name: USED[name] for name in ("learning_rate", "warmup_steps", "optim", "weight_decay", "adam_beta1")},
    **{name: USED[name] for name in ("adam_beta2", "adam_epsilon", "gradient_accumulation_steps")},
    **{name: USED[name] for name in ("neftune_noise_alpha", "data_seed", "train_sampling_strategy")},
    **{"max_grad_norm": 1e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2},
}
EVERYTHING = {name: {name: value} for name, value in USED.items() if name not in ELSEWHERE} | USED_WITH_OTHERS


@pytest.fixture(scope="module")
def train(tiny_causal_lm, tiny_tokenizer, tmp_path_factory):
    """Trains three updates with `settings`, once unless it is to be done `anew`: student's hash, and log."""
    task = load_task("quickstart")
    done = {}
    rows, validation = task.load("train", limit=16), task.load("validation", limit=4)

    def run(anew=False, **settings):
        key = repr(settings)
        if key not in done or anew:
            done[key] = trained(settings)
        return done[key]

    def trained(settings):
        plain = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
        plain |= {"output_dir": str(tmp_path_factory.mktemp("run")), "report_to": "none", "logging_steps": 1}
        args = SinKDConfig(**{**plain, **settings})
        trainer = SinKDTrainer(
            model=tiny_causal_lm(seed=1),
            teacher_model=tiny_causal_lm(seed=2),
            args=args,
            train_dataset=rows,
            eval_dataset=validation,
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        weights = torch.cat([p.detach().float().flatten() for p in trainer.model.parameters()])
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest(), trainer.state

    return run


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_short_training_runs_with_every_setting_that_is_taken(name, train):
    _, state = train(**EVERYTHING[name])
    assert state.global_step == 3
    losses = [record["loss"] for record in state.log_history if "loss" in record]
    assert all(torch.tensor(losses).isfinite())


def test_settings_that_change_the_training_do(train):
    plain, _ = train()
    again, _ = train(anew=True)
    assert plain == again
    same = [name for name, value in CHANGES.items() if train(**{name: value})[0] == plain]
    assert same == []


def test_compiled_training_is_plain_training(train):
    torch._dynamo.reset()
    plain, _ = train()
    compiled, _ = train(torch_compile_backend="eager")
    assert compiled == plain
