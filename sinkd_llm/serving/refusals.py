"""Why a request is not answered, as the client reads it."""

from typing import Any


class Refusal(Exception):
    """
    A request that is not answered.

    Args:
        status (`int`): the HTTP status.
        kind (`str`): a word for programs, such as `"too_long"`.
        message (`str`): what was given, why it is refused, what to do.
        given, allowed (`Any`, *optional*): both sides of a limit.
        retry_after (`int`, *optional*): seconds after which the same request may be answered.
        closes (`bool`, *optional*, defaults to `False`): whether the connection ends, for the rest of the body may
            still come.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        given: Any = None,
        allowed: Any = None,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.given, self.allowed, self.retry_after, self.closes = given, allowed, retry_after, closes

    def content(self) -> dict[str, Any]:
        """The JSON body of the reply."""
        error: dict[str, Any] = {"type": self.kind, "message": self.message}
        error |= {} if self.given is None else {"given": self.given}
        error |= {} if self.allowed is None else {"allowed": self.allowed}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Its HTTP headers."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        found |= {"Connection": "close"} if self.closes else {}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
