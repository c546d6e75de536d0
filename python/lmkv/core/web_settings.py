"""What the controller tells its web process at its start, through a pipe: keys stand in no
environment and no command line."""

from __future__ import annotations

import os

import msgspec

MOST_BYTES = 1 << 16  # what a pipe takes at once


class WebSettings(msgspec.Struct, omit_defaults=True):
    public: bytes = b""  # the web process's own keys
    secret: bytes = b""
    server: bytes = b""  # the controller's
    tokens: str = ""  # the file; "": whoever reaches the port may do all
    cert: str = ""
    key: str = ""
    rate: int = 1000  # requests a second of one client
    log: str = "text"
    compat: str = ""  # whose paths are served too: lmcache

    def pipe(self) -> int:
        """A descriptor to read it from."""
        data = msgspec.msgpack.encode(self)
        assert len(data) < MOST_BYTES, len(data)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.write(writer, data)
        finally:
            os.close(writer)
        return reader


def receive(descriptor: int) -> WebSettings:
    with open(descriptor, "rb") as pipe:
        return msgspec.msgpack.decode(pipe.read(), type=WebSettings)
