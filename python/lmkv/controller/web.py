"""The controller's child that speaks HTTP: WebProcess() -> tick() ... -> end().

The controller listens, and the child gets the listener and the controller's address: a client of it
like any other. A child that ends is started again after 0.1 s, doubling to 10 s; meanwhile whoever
connects waits. The kernel kills it when the controller is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from lmkv.controller.server import CannotListen, Server
from lmkv.core.backoff import Backoff
from lmkv.core.clock import Clock, monotonic
from lmkv.core.config import ControllerConfig
from lmkv.core.web_settings import WebSettings

NEEDS = ("fastapi", "uvicorn", "prometheus_client")  # the extra `web`
BACKLOG = 1024
HEALTHY = 10.0  # seconds of a life that makes the back-off forget
END_DEADLINE = 1.5  # from SIGTERM to SIGKILL; it gives its own requests 1 s


def missing() -> list[str]:
    """What it needs and this installation does not have."""
    return [name for name in NEEDS if find_spec(name) is None]


def listen(config: ControllerConfig, server: Server) -> socket.socket:
    """Raises CannotListen, ConfigError for an address that is not allowed."""
    host = server.access.http_host().strip("[]")
    after = server.query_port + 1 if config.port or config.query_port else 0
    port = config.http_port or after
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"http_port = {port}: cannot listen at {host}:{port}: {error.strerror}; "
            f"name another one, or have no web process (web: false, --no-web)"
        ) from None
    return listener


class WebProcess:
    def __init__(
        self,
        listener: socket.socket,
        controller: str,
        say: Callable[[str], None],
        clock: Clock = monotonic,
        settings: WebSettings | None = None,
    ) -> None:
        self._listener = listener
        self._say = say
        self._controller = controller
        self._clock = clock
        self._settings = settings or WebSettings()
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = Backoff(clock, HEALTHY, Backoff.FIRST)
        self._due = clock()
        host, port = listener.getsockname()[:2]
        scheme = "https" if self._settings.cert else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def tick(self) -> None:
        """See whether it has ended, and start it when it is due."""
        now = self._clock()
        if self._process is not None:
            if (status := self._process.poll()) is None:
                return
            self._process = None
            delay = self._backoff.died()
            self._due = now + delay
            self._say(
                f"the web process ended with status {status}, and is started again in {delay:g} s"
            )
        if now >= self._due:
            self._due = now + self._backoff.next  # if it cannot be started
            self._backoff.born()
            self._start()

    def _start(self) -> None:
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", "lmkv.web.main", "--controller", self._controller]
        command += ["--fd", str(descriptor), "--parent", str(os.getpid())]
        with suppress(OSError):  # no memory, no descriptor: tried again
            told = self._settings.pipe()
            try:
                command += ["--settings", str(told)]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=[descriptor, told]
                )
            finally:
                os.close(told)

    def reload(self, settings: WebSettings) -> None:
        """Let it read tokens and certificate again."""
        changed, self._settings = settings != self._settings, settings
        if self._process is not None and self._process.poll() is None:
            # What it cannot read again by itself it is told at its next start.
            self._process.send_signal(signal.SIGTERM if changed else signal.SIGHUP)

    def end(self) -> None:
        self._listener.close()
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_DEADLINE)
        self._process.kill()
        self._process.wait()
