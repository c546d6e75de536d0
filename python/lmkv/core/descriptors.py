"""Descriptors: how many the system lets a process have, and whether one has something to read."""

from __future__ import annotations

import resource
import select


def allow_descriptors(wanted: int) -> int:
    """Raise the limit of open descriptors to `wanted`, or as far as it goes; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):  # not root, or more than the system has
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return wanted


def readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or its other end is closed, within so many seconds. Any
    descriptor will do: `select` has no room for those above 1,023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
