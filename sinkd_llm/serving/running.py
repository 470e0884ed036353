"""A server as a process: its address, its signals, and what it says."""

import logging
import math
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from sinkd_llm.errors import InputError, first_line, shown
from sinkd_llm.interrupts import Interrupted, leave_terminal, terminating_signals
from sinkd_llm.serving.app import DECISIONS, ServeSettings, StudentServer
from sinkd_llm.terminal import say

# Connections that wait to be taken, of which the system keeps no more anyway.
_BACKLOG = 2048
_LOOPBACK = ("127.", "::1")


def bound(host: str, port: int) -> socket.socket:
    """
    A socket that listens.

    Args:
        host (`str`): a name or address of this machine.
        port (`int`): 0 for any that is free.

    Raises:
        InputError: if it is another machine's, not known, or the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; give 0 (any that is free) to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # a name that is too long, or no name
        raise InputError(
            f"--host is {shown(host)}, which this machine does not know ({first_line(error)}); give 127.0.0.1, "
            "0.0.0.0 or an address of this machine."
        ) from error
    family, _, _, _, address = found[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it lets two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(
            f"{host}:{port} cannot be listened on ({error.strerror or first_line(error)}): another program may use "
            "the port, a port below 1024 may need rights, or the address is none of this machine's. Give another "
            "--port (0: any that is free) or --host."
        ) from error
    return listening


def read_key(variable: str) -> str:
    """
    The key that clients have to send, from the environment. Neither it nor what was given as its name is repeated.

    Args:
        variable (`str`): the name of a variable.

    Raises:
        InputError: if there is none, or what it holds cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip() if re.fullmatch(r"[A-Za-z_]\w*", variable) else ""
    if not key:
        raise InputError(
            "--api_key_env names no environment variable that is set and not empty; give the name of one, not the "
            "key itself: export SINKD_API_KEY=…, and --api_key_env SINKD_API_KEY."
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputError(
            "The key in the variable of --api_key_env holds a space or a character that is not ASCII, which no bearer "
            "token can have; give another key."
        )
    return key


def http_server(server: StudentServer) -> uvicorn.Server:
    """
    What speaks HTTP for a student.

    Args:
        server ([`StudentServer`]): what is served.
    """
    limits = server.limits
    # Its warnings are one for every request that is no HTTP, of which a client may send any number.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        server.app,
        # uvicorn's other parser, httptools, takes headers without end.
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        # A connection holds one request at a time; some more are for health checks while all others wait.
        limit_concurrency=limits.max_queue + 64,
        timeout_graceful_shutdown=math.ceil(limits.timeout_s) + 1,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """As uvicorn's, without a traceback for every request that a second Ctrl-C cuts off."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def serve(server: StudentServer, listening: socket.socket) -> None:
    """
    Serve until a signal comes; then answer what is queued, refuse what is new, and return.

    Args:
        server ([`StudentServer`]): what is served.
        listening (`socket.socket`): of [`bound`].

    Raises:
        Interrupted: after a second Ctrl-C, which leaves requests without a reply.
        Exception: what the first forward of the model raised.
    """
    process, batcher = http_server(server), server.batcher
    batcher.on_failure = lambda: setattr(process, "should_exit", True)
    host, port = listening.getsockname()[:2]
    _say_address(host, port, server.settings)
    with _signals(process):
        process.run(sockets=[listening])
    if batcher.failure is not None:
        raise batcher.failure
    if process.force_exit:
        raise Interrupted("stopped at once; requests may have had no reply")
    say("Stopped; every request has had its reply.")


def _say_address(host: str, port: int, settings: ServeSettings) -> None:
    shown_host = f"[{host}]" if ":" in host else host
    say(f"Serving {settings.name} at http://{shown_host}:{port}{DECISIONS}; Ctrl-C or SIGTERM ends it.")
    if not host.startswith(_LOOPBACK) and settings.api_key is None:
        say(
            f"Note: {host} is open to other machines, and there is no authentication: whoever reaches the port may "
            "ask. Give --api_key_env, or let a proxy with TLS check who asks."
        )
    elif not host.startswith(_LOOPBACK):
        say("Note: the connection is not encrypted, and the key with it; let a proxy with TLS stand between.")


@contextmanager
def _signals(process: uvicorn.Server) -> Iterator[None]:
    """Signals end the server and not this process. uvicorn handles SIGINT and SIGTERM, and raises them again after."""

    def end(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        process.should_exit = True

    numbers = {signal.SIGINT, *terminating_signals()}
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
