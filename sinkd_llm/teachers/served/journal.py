"""What a server has answered, on disk as soon as it is here: a killed run loses nothing and asks nothing twice."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sinkd_llm.errors import InputError, shown
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Call, Way


class Journal:
    """
    JSON lines that only grow; a context that holds the file open.

    A line has the hash of a request (to which address, in which way, all that is asked, the row's prompt and choices),
    the row's name, what the model is called in requests and in replies, and what the reply said: no key of an account,
    and no prompt, unless a reply in words repeats it. Several models and tasks may share a file. The last line of a
    killed run may be half written; it is dropped.

    Args:
        path (`Path`): the file; it is made, and its folder.
        server ([`Server`]): who is asked.
        way ([`Way`]): how.

    Raises:
        InputError: on entering, if the file is no journal, or another process writes to it.
    """

    def __init__(self, path: Path, server: Server, way: Way) -> None:
        self.path, self._server, self._way = path, server, way
        self._said: dict[str, Any] = {}
        # What other models have answered: by what they are called in replies and in requests.
        self._others: dict[tuple[str, str], set[str]] = {}
        self._stream: IO[bytes]

    def __enter__(self) -> "Journal":
        with ExitStack() as held:
            held.enter_context(self._alone())
            self._stream = held.enter_context(self.path.open("a+b"))
            self._read()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes would ask for the same, and take the line that the other one is writing for a broken one."""
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another process is asking {self._server.shown_url} (it writes to {self.path}); wait for its end."
            ) from None
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def key(self, call: Call) -> str:
        """The hash of a request, the same for every model."""
        question = call.question
        body = {name: value for name, value in call.body.items() if name != "model"}
        asked = [call.path, body, question.prompt, question.choices, call.part, call.count]
        text = json.dumps([self._server.url, self._way.name, *asked], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._said

    def said(self, key: str) -> Any:
        """What the model's reply to the request of this key said."""
        return self._said[key]

    def refuse_change(self, keys: Collection[str]) -> None:
        """
        Refuses to begin anew with a model what was begun with another one and not ended, unless the user names it.

        Args:
            keys (`Collection[str]`): of all requests.

        Raises:
            InputError: naming both models.
        """
        for (model, called), theirs in self._others.items():
            chosen = self._server.model is not None and self._server.model != called
            count = sum(key in theirs for key in keys)
            if 0 < count < len(keys) and not chosen and not any(key in self._said for key in keys):
                raise InputError(
                    f"The model {shown(model)} has answered {count:,} of these {len(keys):,} requests (they are kept "
                    f"in {self.path}), and the server's model is now {shown(self._way.model)}. Two teachers are not "
                    "mixed: start the server with the first one again, or give the name of the new one as "
                    "teacher_model to begin anew."
                )

    def add(self, answers: Iterable[tuple[str, Call, Mapping[str, Any]]]) -> None:
        """Puts the replies to some requests, each with its key, on disk together."""
        lines = []
        for key, call, said in answers:
            names = {"row": call.question.name, "model": self._way.model, "called": self._way.asked_model}
            lines.append(json.dumps({"asked": key, **names, "said": said}) + "\n")
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
                key, model, called, said = (entry[name] for name in ("asked", "model", "called", "said"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of {self.path} is no answer of a server that was kept; the file is damaged or no "
                    "journal. Delete the line, or move the file away."
                ) from error
            if model == self._way.model:
                self._said[key] = said
            else:
                self._others.setdefault((model, called), set()).add(key)
        self._stream.truncate(whole)
