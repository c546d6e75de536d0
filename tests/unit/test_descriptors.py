"""Descriptors: as many as are wanted, or as the system lets."""

from __future__ import annotations

import subprocess
import sys

from lmkv.sim.room import A_SOCKET, OTHERS

LIMITED = """
import resource, os
from lmkv.core.descriptors import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
os.setresuid(65534, 65534, 65534) if os.getuid() == 0 else None
print(allow_descriptors(100), allow_descriptors(50), allow_descriptors(1000), resource.getrlimit(7))
"""
TOO_MANY = """
import resource, os
from lmkv.sim.room import TooMany, make_room
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
os.setresuid(65534, 65534, 65534) if os.getuid() == 0 else None
make_room(100, 1)
try:
    make_room(1000, 3)
except TooMany as error:
    print(error)
try:
    make_room(10000, 16)
except TooMany as error:
    print(error)
"""


def said(code: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    assert said(LIMITED) == ["100 50 128 (128, 128)"]


def test_more_instances_than_there_are_descriptors_for_is_one_sentence() -> None:
    needed = (15_000 + OTHERS) * A_SOCKET
    first, second = said(TOO_MANY)
    assert first == (
        f"1000 instances at 3 controllers need {needed} open descriptors, and 4096 are allowed: "
        f"ulimit -n {needed}"
    )
    assert second.startswith(f"10000 instances at 16 controllers need {800_000 + OTHERS} sockets")
