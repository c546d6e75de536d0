"""Ranks on several hosts, which are network namespaces: an agent reaches a worker over the wire
with the cluster's keys, and a mover pulls from another one over `data_interface`."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lmkv.core import keyfiles

from tests.namespaces import Host, two_hosts

DEADLINE = 60.0
FIRST, LAST = 23_000, 23_199  # data_ports


class Side:
    def __init__(self, host: Host, role: str, run_dir: Path, **settings: object) -> None:
        run_dir.mkdir(mode=0o700)
        given = {
            "run_dir": str(run_dir), "control_interface": host.interface,
            "data_interface": host.interface, "data_ports": f"{FIRST}-{LAST}", **settings,
        }  # fmt: skip
        words = host.command(sys.executable, "-m", "tests.contract.far_rank", role)
        self.process = subprocess.Popen(
            [*words, json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, **words: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.process.communicate("{}\n", timeout=DEADLINE)
        finally:
            self.process.kill()


@pytest.mark.nixl
@pytest.mark.timeout(120)
def test_an_agent_and_a_rank_on_two_hosts(tmp_path: Path, run_dir: str) -> None:
    keys = tmp_path / "keys"
    keyfiles.make(keys)
    with ExitStack() as stack:
        a, b = stack.enter_context(two_hosts())
        here = Path(run_dir)
        shared = {"keys": str(keys), "nixl_tls": "tcp"}
        holder = stack.enter_context(Side(a, "holder", here / "a", **shared))
        hello = holder.hear()
        reader = stack.enter_context(Side(b, "reader", here / "b", **shared))
        reader.tell(**hello)
        where = reader.hear()
        assert where["control"].startswith(f"tcp://{a.address}:")
        assert where["mover"].startswith(f"tcp://{a.address}:")
        holder.tell(store=1)
        ended = reader.hear()
        assert ended["pulled"]
        assert ended["listeners"], "UCX by TCP listens"
        for address, port in ended["listeners"]:
            assert address == b.address and FIRST <= port <= LAST
