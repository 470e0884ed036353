"""Which server teaches, and how it may be asked."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from sinkd_llm.errors import InputError, SettingError, nearest, shown
from sinkd_llm.models.kinds.over_choices import CHOICE_NORMALISATIONS
from sinkd_llm.secrets import masked_text

# The first of these variables that is set holds the key. It stands nowhere else.
KEY_VARIABLES = ("SINKD_TEACHER_API_KEY", "OPENAI_API_KEY")
WAYS = ("auto", "scores", "top_logprobs", "answers")
# Paths of single calls, which are put after the address by this package.
_CALLS = ("/chat/completions", "/completions", "/models")


@dataclass(frozen=True)
class Server:
    """
    A server that is asked for a teacher's answers. Errors name its settings as a run does: `teacher_url`, …

    Args:
        url (`str`): the address of its API, which mostly ends in `/v1`; an address without a path gets `/v1`.
        model (`str`, *optional*): what the server calls the model. By default the only one that it lists.
        samples (`int`, *optional*, defaults to 0): answers at temperature 1 for each row, whose frequencies are the
            signal, where the server only answers. 0: one answer at temperature 0.
        max_requests (`int`, *optional*): the most requests of finding a way and one call of
            [`~sinkd_llm.teachers.served.asking.ask`] together, repeated ones included.
        rows_per_request (`int`, *optional*, defaults to 1): rows of one request, which are asked as a list and
            answered as text.
        concurrency (`int`, *optional*, defaults to 8): the most requests at the same time.
        timeout_s (`float`, *optional*, defaults to 120): seconds after which a request without reply is repeated.
        retries (`int`, *optional*, defaults to 8): how often a request is repeated, with growing waits.
        choice_normalisation (`str`, *optional*, defaults to `"sum"`): `"sum"`: the log-likelihood of a choice;
            `"token"`: divided by its number of tokens. Only where the server scores choices.
        way (`str`, *optional*, defaults to `"auto"`): `"scores"`, `"top_logprobs"` or `"answers"`, see
            [`~sinkd_llm.teachers.served.ways.find_way`]; `"auto"`: the first of these that works.

    Raises:
        SettingError: for an address without a scheme or with a call's path, and for numbers out of range.
    """

    url: str
    model: str | None = None
    samples: int = 0
    max_requests: int | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 8
    choice_normalisation: str = "sum"
    way: str = "auto"
    rows_per_request: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _address(self.url))
        if self.model is not None and not self.model.strip():
            raise SettingError("teacher_model", "is empty; give the name that the server lists, or leave it out.")
        for name, least in (("samples", 0), ("rows_per_request", 1), ("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"teacher_{name}", f"is {getattr(self, name)}; give a number of at least {least}.")
        if self.max_requests is not None and self.max_requests < 1:
            raise SettingError("teacher_max_requests", f"is {self.max_requests}; give at least 1, or leave it out.")
        if not 0 < self.timeout_s < float("inf"):
            raise SettingError("teacher_timeout_s", f"is {self.timeout_s}; give a number of seconds above 0.")
        for name, value, known in (
            ("choice_normalisation", self.choice_normalisation, CHOICE_NORMALISATIONS),
            ("teacher_way", self.way, WAYS),
        ):
            if value not in known:
                raise SettingError(name, f"is {shown(value)}; give one of {', '.join(known)}.{nearest(value, known)}")

        if self.rows_per_request > 1 and self.way not in ("auto", "answers"):
            raise SettingError(
                "teacher_way",
                f"is {self.way}, and teacher_rows_per_request {self.rows_per_request} asks for lists, which are "
                "answered as text; set teacher_way to answers, or ask for single rows.",
            )

    @property
    def shown_url(self) -> str:
        """The address for messages, without what is secret in it."""
        return masked_text(self.url)


def api_key() -> tuple[str, str] | None:
    """
    The key that the environment holds, and the name of its variable; `None` without one.

    Raises:
        InputError: naming the variable, if its value cannot stand in a header.
    """
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key:
            if not key.isascii() or not key.isprintable():
                raise InputError(
                    f"The environment variable {variable} holds characters that no key has (a line end, or letters "
                    "outside of ASCII); set it to the key alone."
                )
            return key, variable
    return None


def _address(url: str) -> str:
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        given = shown(masked_text(url))
        raise SettingError("teacher_url", f"is {given}; give an address such as 'http://127.0.0.1:8000/v1'.")
    for call in _CALLS:
        if parts.path.endswith(call):
            right = masked_text(text[: -len(call)])
            raise SettingError("teacher_url", f"ends in {call!r}, the path of one call; give {right!r}.")
    return urlunsplit(parts._replace(path=parts.path or "/v1"))
