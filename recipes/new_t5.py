"""Writes a small T5 with random weights: the start of the encoder-decoder recipe. It needs no model hub.

python recipes/new_t5.py runs/t5-start

4 encoder and 2 decoder layers of width 256; the tokenizer is the one of the bundled `minilm-l6` (30,522 word pieces).
"""

import sys

import torch
from transformers import T5Config, T5ForConditionalGeneration

from sinkd_llm import load_tokenizer


def main(folder: str) -> None:
    torch.manual_seed(0)
    tokenizer = load_tokenizer("minilm-l6")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=8,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
