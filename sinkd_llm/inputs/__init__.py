"""Rows to batches: token ids of prompts and answers, laid out as each kind of model reads them."""
