"""A checkpoint of an adapter on a bundled model."""

import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from sinkd_llm import SinKDConfig, SinKDTrainer


def test_a_name_that_is_none_of_the_hubs_is_fine(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    student = tiny_causal_lm("llama")
    student.name_or_path = student.config.name_or_path = "smollm2-135m"  # as load_model leaves it
    rows = Dataset.from_list([{"id": str(i), "prompt": "good", "completion": " film"} for i in range(4)])
    trainer = SinKDTrainer(
        model=student,
        teacher_model=tiny_causal_lm("llama", seed=1),
        args=SinKDConfig(str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    assert trainer.model.peft_config["default"].base_model_name_or_path == "smollm2-135m"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert not [str(warning.message) for warning in caught if "config file" in str(warning.message)]
