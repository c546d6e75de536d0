"""The controller's process: `run(config)` listens until SIGTERM or SIGINT.

`python -m lmkv.controller.main [--port 7550 ...]` takes every setting of `ControllerConfig`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from lmkv.controller.server import CannotListen, Server
from lmkv.core.config import ConfigError, ControllerConfig, read


def run(config: ControllerConfig) -> int:
    """The process's exit status: 0 after a signal, 1 when it cannot listen, 2 when it may not."""
    ended = False

    def end(number: int, frame: object) -> None:
        nonlocal ended
        ended = True

    # From here on a signal only ends the loop, so that one that comes early is not lost.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = Server(config)
    except (CannotListen, ConfigError) as error:
        print(f"lmkv controller: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    else:
        try:
            print(
                f"lmkv controller: listening at {server.state_address}, "
                f"queries at {server.query_address}",
                file=sys.stderr,
                flush=True,
            )
            server.serve(lambda: ended)
        finally:
            server.close()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    inline: dict[str, str] = {}
    words = list(arguments)
    while words:
        name = words.pop(0)
        if not name.startswith("--") or not words:
            print(f"lmkv controller: {name!r}: allowed is --SETTING VALUE", file=sys.stderr)
            return 2
        inline[name[2:].replace("-", "_")] = words.pop(0)
    try:
        config = read(ControllerConfig, inline, inline_name="command line")
    except ConfigError as error:
        print(f"lmkv controller: {error}", file=sys.stderr)
        return 2
    return run(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
