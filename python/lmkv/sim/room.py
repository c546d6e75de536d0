"""Sockets and descriptors for many instances in one process."""

from __future__ import annotations

import zmq

from lmkv.core.descriptors import allow_descriptors

A_CONTROLLER = 5  # sockets of an instance: a stream, two for questions, two to replace these
A_SOCKET = 2  # descriptors
OTHERS = 512
IO_THREADS = 2  # of ZMQ; that many instances have one each


class TooMany(Exception):
    """One sentence."""


def make_room(instances: int, controllers: int) -> None:
    """Before the first socket of the process: their number is fixed then. Raises TooMany."""
    sockets = instances * controllers * A_CONTROLLER + OTHERS
    needed = sockets * A_SOCKET
    most = int(zmq.Context.instance().get(zmq.SOCKET_LIMIT))
    if sockets > most:
        raise TooMany(
            f"{instances} instances at {controllers} controllers need {sockets} sockets, "
            f"and ZMQ has at most {most}"
        )
    if (allowed := allow_descriptors(needed)) < needed:
        raise TooMany(
            f"{instances} instances at {controllers} controllers need {needed} open descriptors, "
            f"and {allowed} are allowed: ulimit -n {needed}"
        )
    zmq.Context.instance().set(zmq.MAX_SOCKETS, sockets)
    zmq.Context.instance().set(zmq.IO_THREADS, IO_THREADS)
