"""The controller's process: `run(config)` listens until SIGTERM or SIGINT; SIGHUP lets it and its
web process read clients, tokens and certificate again.

`python -m lmkv.controller.main [--port 7550 ...]` takes every setting of `ControllerConfig`. HTTP
is spoken by a child (`web.py`); without the libraries that it needs the controller serves on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from lmkv._native import set_turn
from lmkv.controller.access import Access
from lmkv.controller.server import CannotListen, Server
from lmkv.controller.web import WebProcess, listen, missing
from lmkv.core import log
from lmkv.core.config import ConfigError, ControllerConfig, read
from lmkv.core.descriptors import allow_descriptors
from lmkv.core.keyfiles import BadKeys

DESCRIPTORS = 65_536  # an instance has three connections
# Microseconds of a processor at a time. A locate passes five threads, two of them here, and where
# others compute (a step of an engine, say) each of these would wait for up to a turn of theirs.
TURN = 100


def run(config: ControllerConfig) -> int:
    """The process's exit status: 0 after a signal, 1 when it cannot listen, 2 when it may not."""
    allow_descriptors(DESCRIPTORS)
    set_turn(TURN)  # before there is any other thread
    ended = hung_up = False

    def end(number: int, frame: object) -> None:
        nonlocal ended
        ended = True

    def hang_up(number: int, frame: object) -> None:
        nonlocal hung_up
        hung_up = True

    # From here on a signal only ends the loop, so that one that comes early is not lost.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    say = partial(log.say, "controller", form=config.log)
    server: Server | None = None
    web: WebProcess | None = None
    try:
        server = Server(config, say=say)
        lacking = missing() if config.web else []
        if config.web and not lacking:
            listener = listen(config, server)
            web = WebProcess(listener, server.own_address, say, settings=server.access.web())
        for sentence in server.access.warnings():
            say(sentence)

        def tick() -> None:
            nonlocal hung_up
            if hung_up:
                hung_up = False
                reload(server.access, web, say)
            if web is not None:
                web.tick()

        say(
            f"listening at {server.state_address}, queries at {server.query_address}"
            + (f", HTTP at {web.url}" if web else "")
        )
        if lacking:
            say(f"no HTTP: {', '.join(lacking)} missing; pip install 'lmkv[web]', or say --no-web")
        notify("READY=1")
        server.serve(lambda: ended, tick)
        return 0
    except (CannotListen, ConfigError) as error:
        say(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        notify("STOPPING=1")
        if web is not None:
            web.end()
        if server is not None:
            server.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def reload(access: Access, web: WebProcess | None, say: Callable[[str], None]) -> None:
    """Clients and tokens as the files have them now; what is wrong changes nothing."""
    try:
        access.reload()
    except BadKeys as error:
        say(f"nothing was read again: {error}")
        return
    if web is not None:
        web.reload(access.web())
    say("clients, tokens and certificate were read again")


def notify(state: str) -> None:
    """Tell systemd, where it has started us (`Type=notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(1.0)
        told.connect("\0" + address[1:] if address.startswith("@") else address)
        told.send(state.encode())


def main(arguments: Sequence[str]) -> int:
    inline: dict[str, str] = {}
    words = list(arguments)
    while words:
        name = words.pop(0)
        if not name.startswith("--") or not words:
            log.say("controller", f"{name!r}: allowed is --SETTING VALUE")
            return 2
        inline[name[2:].replace("-", "_")] = words.pop(0)
    try:
        config = read(ControllerConfig, inline, inline_name="command line")
    except ConfigError as error:
        log.say("controller", str(error))
        return 2
    return run(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
