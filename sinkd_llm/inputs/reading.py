"""How a run reads its rows: one value, the same for student, teacher and scores."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """
    How rows become tokens.

    Args:
        max_length (`int`, *optional*): longest sequence in tokens, prompt and answer together; prompts that are longer
            lose their beginning. Default: no bound.
        apply_chat_template (`bool`, *optional*, defaults to `False`): render plain prompts as a user's turn.
            Conversational rows always are.
        add_eos (`bool`, *optional*): supervise the end-of-sequence token after the answer. Default: yes for plain
            prompt-completion rows, no for rows with choices and for conversational rows, whose template closes the
            turn.
    """

    max_length: int | None = None
    apply_chat_template: bool = False
    add_eos: bool | None = None

    @classmethod
    def of(cls, settings: Any) -> "Reading":
        """The reading that settings ask for which have these three names, such as [`SinKDConfig`]."""
        return cls(settings.max_length, settings.apply_chat_template, settings.add_eos)

    def within(self, *lengths: int | None) -> "Reading":
        """The same reading, of no more tokens than each of `lengths` allows; `None` is no bound."""
        bounds = [length for length in (self.max_length, *lengths) if length is not None]
        return dataclasses.replace(self, max_length=min(bounds, default=None))
