"""What a model card says of what a model reads of a row, and of how it answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkd_llm.report.card_code import prompt_of, texts_of
from sinkd_llm.report.model_files import ModelFiles


def input_in_words(texts: Sequence[str]) -> str:
    """
    What a classifier reads of a row; empty for a model that reads the prompt.

    Args:
        texts (`Sequence[str]`): its columns or templates, of [`texts_of`].
    """
    if not texts:
        return ""
    if not _are_columns(texts):
        made = "this template makes" if len(texts) == 1 else "these templates make, as a pair of texts,"
        return f"The classifier reads what {made} of a row, and no prompt:"
    if len(texts) == 1:
        return f"The classifier reads the column {texts[0]} alone, as it stands, and no prompt."
    return f"The classifier reads the columns {' and '.join(texts)} as a pair of texts, and no prompt."


def input_templates(task: Mapping[str, Any], model: ModelFiles) -> list[str]:
    """The templates that make what a model reads; none where it reads columns as they stand, or without a task."""
    texts = texts_of(task, model)
    if texts:
        return [] if _are_columns(texts) else texts
    prompt = prompt_of(task)
    return [prompt] if prompt else []


def chosen_in_words(model: ModelFiles) -> str:
    """How an answer is chosen, in words that the answers follow."""
    if model.predicts_number:
        return "The model predicts a number, and the answer is the nearest of these"
    if model.is_classifier:
        return "The answer is the class of the highest probability"
    return "The answers are ranked by their probability"


def _are_columns(texts: Sequence[str]) -> bool:
    return all(text.isidentifier() for text in texts)
