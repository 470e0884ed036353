"""The body of a request, as rows to answer: what it may hold, and what is said where it holds something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError
from sinkd_llm.row_streams import parse_json
from sinkd_llm.serving.asked import Asked, question_example
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.refusals import Refusal
from sinkd_llm.tasks.unlabelled import own_id
from sinkd_llm.values import check_text, listed, shown

FIELDS = ("texts", "rows", "questions")
_STRICT = ConfigDict(extra="forbid", strict=True)
# What pydantic calls a type that is missing -> in words.
_TYPES = {
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "an object of column names and values",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


class Bodies:
    """
    Reads the bodies of requests to a student.

    Args:
        student ([`Student`]): whose task the rows are of.
        limits ([`ServeLimits`]): `max_rows`, `max_row_chars` and `max_choices` of it.

    Attributes:
        model (`type[BaseModel]`): what a body may hold, for the schema of the API.
    """

    def __init__(self, student: Student, limits: ServeLimits) -> None:
        self._student, self._limits = student, limits
        self._takes_choices = student.takes_choices
        self.model = _body_model(limits)

    def read(self, body: bytes) -> list[Asked]:
        """
        The rows of a body.

        Args:
            body (`bytes`): JSON in UTF-8, an object with one of `texts`, `rows` and `questions`.

        Raises:
            Refusal: for anything else, and for what goes beyond a limit or cannot be answered, by its place.
        """
        content = _parsed(body)
        try:
            asked: Any = self.model.model_validate(content)
        except ValidationError as error:
            raise _as_refusal(error) from error
        # A null is as good as a field that is not there.
        given = [name for name in FIELDS if getattr(asked, name) is not None]
        if len(given) != 1:
            raise Refusal(
                422,
                "wrong_fields",
                f"The body has {'the fields ' + ' and '.join(given) if given else 'nothing to answer'}; give one of "
                f"{', '.join(FIELDS)}.",
            )
        try:
            return self._questions(asked.questions) if asked.questions is not None else self._rows(given[0], asked)
        except InputError as error:
            raise self.wrong_row(error) from error

    def wrong_row(self, error: InputError) -> Refusal:
        """What is wrong with a row, without the places of files, which are nothing to a client."""
        message = str(error)
        for file in {self._student.task.path, *self._student.task.origins.values()}:
            message = message.replace(str(file), "the task")
        return Refusal(422, "wrong_row", message)

    def _rows(self, field: str, asked: Any) -> list[Asked]:
        rows: list[str | Mapping[str, Any]] = getattr(asked, field)
        for i, row in enumerate(rows):
            self._check_length(f"{field}[{i}]", row)
        placed = ((f"{field}[{i}]", row) for i, (_, row) in enumerate(self._student.placed(rows)))
        found = []
        for name, where, example in self._student.examples(placed):
            if self._student.choices is None:
                self._check_choices(where, len(example.choices))
            check_text(str(name), "The id", where)
            found.append(Asked(name, example))
        return found

    def _questions(self, questions: Any) -> list[Asked]:
        if not self._takes_choices:
            choices = self._student.choices or ()
            raise Refusal(
                422,
                "own_choices",
                f"questions[0] brings the choices {listed(questions[0].choices)}, but this student is a classifier, "
                f"which answers its own {len(choices)} classes only ({listed(choices)}); give texts or rows.",
                allowed=list(choices),
            )
        found = []
        for i, one in enumerate(questions):
            where = f"questions[{i}]"
            self._check_length(where, one.model_dump())
            name = own_id({"id": one.id})
            example = question_example(one.prompt, one.choices, where)
            found.append(Asked(i if name is None else name, example, own_choices=True))
        return found

    def _check_length(self, where: str, row: Any) -> None:
        length, most = _characters(row), self._limits.max_row_chars
        if length > most:
            raise Refusal(
                422,
                "too_long",
                f"{where} has {length:,} characters, and a row may have {most:,}; shorten it.",
                given=length,
                allowed=most,
            )

    def _check_choices(self, where: str, count: int) -> None:
        most = self._limits.max_choices
        if count > most:
            raise Refusal(
                422,
                "too_many_choices",
                f"{where} has {count:,} choices, and a row may have {most:,}; give fewer.",
                given=count,
                allowed=most,
            )


def _parsed(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            400, "not_utf8", f"The body is no UTF-8 from byte {error.start:,} on; send JSON in UTF-8."
        ) from error
    try:
        return parse_json(text, 1, Path("the body"), advice="send one whole object")
    except InputError as error:
        raise Refusal(400, "not_json", str(error)) from error


def _body_model(limits: ServeLimits) -> type[BaseModel]:
    text: Any = Annotated[str, StringConstraints(max_length=limits.max_row_chars)]
    choices: Any = Annotated[list[text], Field(min_length=2, max_length=limits.max_choices)]
    question: Any = create_model(
        "Question", __config__=_STRICT, id=(str | int | None, None), prompt=(text, ...), choices=(choices, ...)
    )

    def many(kind: Any) -> Any:
        return Annotated[list[kind], Field(min_length=1, max_length=limits.max_rows)] | None, None

    return create_model(
        "Decisions", __config__=_STRICT, texts=many(text), rows=many(dict[str, Any]), questions=many(question)
    )


def _as_refusal(error: ValidationError) -> Refusal:
    """The first thing that is wrong, in words."""
    first = error.errors(include_url=False)[0]
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    where = _place(first["loc"]) or "The body"
    if kind == "missing":
        return Refusal(422, "missing_field", f"{where} is missing; give it.")
    if kind == "extra_forbidden":
        known = FIELDS if len(first["loc"]) == 1 else ("id", "prompt", "choices")
        return Refusal(422, "unknown_field", f"{shown(where)} is unknown; the fields are {', '.join(known)}.")
    if kind in ("too_long", "string_too_long"):
        length, most = context.get("actual_length") or len(value), context["max_length"]
        unit = "characters" if kind == "string_too_long" else "items"
        message = f"{where} has {length:,} {unit}, and may have {most:,}; send less at once."
        return Refusal(422, "too_long", message, given=length, allowed=most)
    if kind == "too_short":
        length, least = len(value), context["min_length"]
        return Refusal(
            422, "too_short", f"{where} has {length} items; give at least {least}.", given=length, allowed=least
        )
    wanted = "a text or a whole number" if "id" in first["loc"] else _TYPES.get(kind)
    problem = f"give {wanted}" if wanted else first["msg"].removeprefix("Input ")
    return Refusal(422, "wrong_type", f"{where} is {shown(value)}; {problem}.")


def _place(parts: tuple[int | str, ...]) -> str:
    """`questions[3].choices`."""
    text = ""
    # After an id come the types that it may have.
    for part in parts[: parts.index("id") + 1] if "id" in parts else parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _characters(value: Any) -> int:
    """Characters of all that a row says, names among them; a row is not nested deep, see [`parse_json`]."""
    if isinstance(value, Mapping):
        return sum(len(str(name)) + _characters(item) for name, item in value.items())
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(str(value))
