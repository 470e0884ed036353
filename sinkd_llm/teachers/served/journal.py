"""What a server has answered, on disk as soon as it is here: a killed run loses nothing and asks nothing twice."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sinkd_llm.errors import InputError, shown
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Call, Way


class Journal:
    """
    JSON lines that only grow; a context that holds the file open.

    A line has the key of a request, the row's name, the server's address as a hash, way and model, and what the reply
    said: no prompt and no key of the account. The last line of a killed run may be half written; it is dropped.

    Args:
        path (`Path`): the file; it is made, and its folder.
        server ([`Server`]): who is asked.
        way ([`Way`]): how.

    Raises:
        InputError: if the file is no journal, or holds answers that this server gave in this way with another model.
    """

    def __init__(self, path: Path, server: Server, way: Way) -> None:
        self.path, self._way = path, way
        self._server = _digest(server.url)
        self._said: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[bytes] = path.open("a+b")
        try:
            self._read()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def key(self, call: Call) -> str:
        """What tells a request from others: address, model, way, all that is asked, the row's prompt and choices."""
        question = call.question
        asked = [call.path, call.body, question.prompt, question.choices, call.part, call.count]
        return _digest(json.dumps([self._server, self._way.model, self._way.name, *asked], sort_keys=True))

    def __contains__(self, key: str) -> bool:
        return key in self._said

    def said(self, key: str) -> Any:
        """What the reply to the request of this key said."""
        return self._said[key]

    def add(self, answers: Iterable[tuple[str, Call, Mapping[str, Any]]]) -> None:
        """Puts the replies to some requests, each with its key, on disk together."""
        lines = []
        for key, call, said in answers:
            origin = {"server": self._server, "way": self._way.name, "model": self._way.model}
            lines.append(json.dumps({"key": key, "row": call.question.name, **origin, "said": said}) + "\n")
            self._said[key] = said
        if not lines:
            return
        try:
            self._stream.write("".join(lines).encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error

    def _read(self) -> None:
        self._stream.seek(0)
        whole = 0
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                origin = entry["server"], entry["way"]
                key, model, said = entry["key"], entry["model"], entry["said"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of {self.path} is no answer of a server that was kept; the file is damaged or no "
                    "journal. Delete the line, or give another file."
                ) from error
            if origin == (self._server, self._way.name) and model != self._way.model:
                raise InputError(
                    f"{self.path} holds answers of the model {shown(model)}, and the server's model is now "
                    f"{shown(self._way.model)}. Two teachers are not mixed: start the server with the first one "
                    "again, or give another file to begin anew."
                )
            self._said[key] = said
        self._stream.truncate(whole)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
