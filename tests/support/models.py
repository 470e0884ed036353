"""Tiny random models of every kind with their tokenizers, as objects, as folders, as files."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = (
    *("review", "sentiment", "positive", "negative", "good", "bad", "great", "awful", "the", "a", "an", "film"),
    *("plot", "food", "was", "is", "not", "but", "and", "yes", "no", "true", "false", "question", "answer"),
    *("world", "sports", "business", "science", ":", ".", ",", "\n"),
)

DECODERS = ("llama", "gpt2", "opt", "gpt_neo", "gpt_neox", "qwen2", "qwen3", "gemma3_text")
ENCODERS = ("bert", "roberta", "deberta-v2", "distilbert", "modernbert")
ENCODER_DECODERS = ("t5", "mt5", "bart", "marian", "pegasus")


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


@functools.cache
def word_tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on a few words: ` positive` is one token, ` un`+… are several."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<pad>", "<eos>"]),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


@functools.cache
def marked_tokenizer(family: str) -> Any:
    """The tiny tokenizer with the special tokens that a family of encoders puts around a text."""
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
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    if family not in ("t5", "mt5", "marian"):
        tokens |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    if family in ENCODERS:
        fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    if family not in ("bert", "deberta-v2"):
        fast.model_input_names = ["input_ids", "attention_mask"]
    return fast


def decoder(
    family: str = "llama",
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    vocab: int | None = None,
    **changes: Any,
) -> Any:
    """A random tiny decoder-only model over the vocabulary of `word_tokenizer`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    size = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "vocab_size": vocab or len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
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


def encoder_or_encoder_decoder(
    family: str,
    head: str = "SequenceClassification",
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    vocab: int | None = None,
    **changes: Any,
) -> Any:
    """A random tiny encoder-decoder or encoder over the vocabulary of `marked_tokenizer(family)`."""
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


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Writes the folder of a model as a user has it, with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def same_weights(one: Any, other: Any) -> bool:
    import torch

    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def with_adapter(model: Any, **options: Any) -> Any:
    """`model` with a LoRA adapter that changes its output."""
    import torch
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["q_proj", "v_proj"], "r": 4, "task_type": "CAUSAL_LM", **options}
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted.eval()


def write_gguf(file: Path, model: Any, tokenizer: Any) -> None:
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_name("A Title In The Metadata")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in ("<pad>", "<eos>") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)

    def rotary(weight: Any, heads: int) -> Any:  # GGUF pairs neighbouring rows
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weight = layer.get_submodule(ours).weight
            if theirs == "attn_q":
                weight = rotary(weight, config.num_attention_heads)
            elif theirs == "attn_k":
                weight = rotary(weight, config.num_key_value_heads)
            tensors[f"blk.{index}.{theirs}.weight"] = weight
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
