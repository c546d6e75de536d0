"""One side of test_two_hosts.py, in a namespace of its own: `python -m ... holder|reader`, then
settings, and words on stdin, as JSON lines.

The holder is a rank whose agent is elsewhere. The reader is that agent, and another instance, which
pulls from it.
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
from typing import Any

from lmkv._native import SlotStatus
from lmkv.agent.links import Link
from lmkv.core import wire
from lmkv.core.messages import Attach, PullPeer, PullResult, Stored, StoredOk, WorkerState
from lmkv.core.rank_sockets import agent_keys, place
from lmkv.core.steps import StepPlan
from lmkv.mover import transport

from tests.contract.mover_instance import Instance, pulled
from tests.contract.test_control_tcp import TcpRank, settings
from tests.contract.test_worker import DEADLINE, EPOCH, store


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def hear() -> Any:
    return json.loads(sys.stdin.readline())


def holder(given: dict[str, Any]) -> None:
    keys = agent_keys(place(settings(**given)))
    rank = TcpRank(given.pop("run_dir"), keys, **given)
    try:
        say(hello=base64.b64encode(pickle.dumps(rank.hello)).decode())
        job = hear()["store"]
        rank.worker.submit_stores(StepPlan(EPOCH, [store(job, [0, 1])]))
        hear()  # until all is over
    finally:
        rank.close()


def reader(given: dict[str, Any]) -> None:
    hello = pickle.loads(base64.b64decode(hear()["hello"]))
    link = Link(hello["control"], agent_keys(place(settings(**given))), short=False)

    def from_worker(kind: type, wanted: Any) -> Any:
        while True:
            assert link.socket.poll(int(1000 * DEADLINE)), "the worker says nothing"
            message, _ = wire.decode(link.socket.recv_multipart())
            if isinstance(message, kind) and wanted(message):
                return message

    assert link.socket.poll(int(1000 * DEADLINE), 2), "the worker does not let us in"
    assert link.send(Attach("a", EPOCH))
    state = from_worker(WorkerState, lambda s: s.info.usable_segments and s.info.nixl_metadata)
    say(control=hello["control"], mover=state.mover_socket)
    stored = from_worker(Stored, lambda s: True)
    assert link.send(StoredOk(stored.job))
    keep = ("data_interface", "data_ports")
    mine = {name: given[name] for name in keep} | {"nixl_tls": "tcp,self"}
    with Instance("b", given["run_dir"], text=hello["layouts"][0], **mine) as b:
        peer = PullPeer("a", EPOCH, state.data_version, state.info)
        b.pull(1, peer, [(stored.job, stored.job, stored.job)], [(0, 1)])
        answer, results = pulled(b, 1)
        assert results == [PullResult.GOOD], (answer, results, b.states[-1])
        assert b.check(0, stored.job, 1) == SlotStatus.GOOD
        say(pulled=True, listeners=_listeners(b.supervisor.pid))
    link.close()


def _listeners(pid: int | None) -> list[tuple[str, int]]:
    """Of a process of this namespace."""
    import os
    import re
    from pathlib import Path

    sockets = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == transport.LISTEN and f"socket:[{fields[9]}]" in sockets:
            address, port = re.split(":", fields[1])
            octets = [str(int(address[n : n + 2], 16)) for n in (6, 4, 2, 0)]
            found.append((".".join(octets), int(port, 16)))
    return found


if __name__ == "__main__":
    {"holder": holder, "reader": reader}[sys.argv[1]](json.loads(sys.argv[2]))
