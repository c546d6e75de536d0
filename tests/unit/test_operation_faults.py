"""A fault at every step of every operation: each job ends with a reason, and leaves nothing behind.

A step is a tick of the cluster from the command on, until the job ends without meeting the fault.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lmkv.core.messages import Command, Part
from lmkv.core.messages.jobs import ENDED

from tests.job_cluster import Cluster

CHUNKS = 6


def peers_mover_killed(cluster: Cluster) -> None:
    """READs from it fail; it is there again under another name, which it tells at once."""
    cluster.gone_movers.add("a")


def own_mover_killed(cluster: Cluster) -> None:
    cluster["b"].mover("")


def own_mover_replaced(cluster: Cluster) -> None:
    cluster["b"].mover("sim://mover?2")


def peer_gone(cluster: Cluster) -> None:
    cluster.gone.add("a")


def controller_gone(cluster: Cluster) -> None:
    """The nearest; the other one takes the relay."""
    cluster.controllers[0].up = False


def controllers_restarted(cluster: Cluster) -> None:
    for controller in cluster.controllers:
        controller.born()


def reset_here(cluster: Cluster) -> None:
    cluster["b"].agent.reset()


def reset_there(cluster: Cluster) -> None:
    cluster["a"].agent.reset()


def cancelled(cluster: Cluster) -> None:
    if cluster["b"].part().state not in ENDED:
        cluster.ask("cancel", "b", name="c1", job="j1")


def table_full(cluster: Cluster) -> None:
    """All that can be taken is, and pinned."""
    b = cluster["b"]
    slots = b.agent.table.granules()
    room = (slots["free"] + slots["readable"] + slots["retired"]) // 16
    while not b.room(500, 500 + room):  # compressed slots leave gaps
        room -= 1
    b.hold(500, 500 + room)
    b.agent.pins.begin("full", "test", 0.0)
    for n in range(500, 500 + room):
        b.agent.pins.add("full", [b.keys(n, n + 1)])
    b.agent.pins.commit("full")


def source_evicts(cluster: Cluster) -> None:
    cluster["a"].hold(600, 616)


def relays_too_late(cluster: Cluster) -> None:
    """No controller passes on a command: it meets its deadline."""
    for controller in cluster.controllers:
        hear = controller.commands.hear
        controller.commands.hear = (  # type: ignore[method-assign]
            lambda link, message, frames, hear=hear: (
                [] if isinstance(message, Command) else hear(link, message, frames)
            )
        )


def left(cluster: Cluster) -> None:
    cluster["b"].agent.jobs.close()


FAULTS = [
    peers_mover_killed,
    own_mover_killed,
    own_mover_replaced,
    peer_gone,
    controller_gone,
    controllers_restarted,
    reset_here,
    reset_there,
    cancelled,
    table_full,
    source_evicts,
    relays_too_late,
    left,
]
# What a job may end as under each, beside `done` when the fault met nothing of it.
CODES = {
    "peers_mover_killed": {"peer_dead"},
    "own_mover_killed": {"mover_down"},
    "own_mover_replaced": {"mover_down"},
    "peer_gone": {"peer_dead", "timeout", "unavailable", "unknown_prefix"},
    "controller_gone": set(),
    "controllers_restarted": {"unknown_instance", "unknown_prefix", "no_controller", "timeout"},
    "reset_here": {"reset"},
    "reset_there": {"unavailable", "peer_dead", "unknown_prefix"},
    "cancelled": {"cancelled"},
    "table_full": {"no_room", "unknown_prefix"},
    "source_evicts": {"unknown_prefix"},
    "relays_too_late": {"timeout"},
    "left": {"left"},
}
OPERATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "copy": ("copy", {}),
    "copy from a": ("copy", {"source": "a"}),
    "move": ("move", {"source": "a"}),
    "move whole": ("move", {"source": "a", "whole": "1"}),
    "pin": ("pin", {"ttl": "60"}),
    "unpin": ("unpin", {"owner": "team"}),
    "clear": ("clear", {}),
    "compress": ("compress", {}),
    "decompress": ("decompress", {}),
}


def begun(which: str) -> Cluster:
    """Instance b has taken the job; a has what is copied, b the last chunk of it, twice pinned."""
    operation, arguments = OPERATIONS[which]
    cluster = Cluster("a", "b", controllers=2, pin_share=1.0, on_reset="keep")
    a, b = cluster["a"], cluster["b"]
    a.hold(0, CHUNKS)
    b.hold(CHUNKS - 1, CHUNKS)
    if operation not in ("copy", "move"):
        b.hold(0, CHUNKS - 1)
    if operation == "decompress":
        cluster.do("compress", "b", b.keys(0, CHUNKS), name="z1")
    if operation == "unpin":
        cluster.do("pin", "b", b.keys(0, CHUNKS), name="p1", owner="team")
    cluster.run(3)
    frames = () if "whole" in arguments else (b.keys(0, CHUNKS),)
    cluster.take(operation, "b", *frames, **arguments)
    return cluster


def walked(which: str, fault: Callable[[Cluster], None], step: int) -> tuple[Cluster, Part, bool]:
    """The job's end with that fault before tick number `step`, and whether it came in time."""
    cluster = begun(which)
    met = False
    for tick in range(4000):
        part = cluster["b"].part()
        if part.state in ENDED:
            break
        if tick == step:
            fault(cluster)
            met = True
        cluster.tick()
    return cluster, part, met


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("which", OPERATIONS)
def test_a_fault_at_each_step(which: str, fault: Callable[[Cluster], None]) -> None:
    codes = set()
    for step in range(1000):
        cluster, part, met = walked(which, fault, step)
        if not met:
            break
        where = f"step {step}: {part}"
        assert part.state in ENDED, where
        assert part.state == "done" or (part.reason and part.code), where
        if part.state != "done":
            codes.add(part.code)
        assert list(cluster.at_rest()) == [], where
        a, b = cluster["a"], cluster["b"]
        if part.operation == "unpin" and part.state == "done":
            assert "p1" not in b.pins, where
        takes_room = fault is table_full and part.state == "done"  # of what had been moved
        empties = takes_room or fault in (reset_here, reset_there, source_evicts)
        if part.operation in ("copy", "move") and not empties:
            # Whatever happened, each chunk is still somewhere, and a copy has cost its source none.
            have = {*a.has(0, CHUNKS), *b.has(0, CHUNKS)}
            assert have == set(range(CHUNKS)), where
            assert part.operation == "move" or a.has(0, CHUNKS) == list(range(CHUNKS)), where
        if part.operation in ("compress", "decompress") and not empties and fault != table_full:
            assert b.has(0, CHUNKS) == list(range(CHUNKS)), where
    assert step > 0
    assert codes <= CODES[fault.__name__], codes


@pytest.mark.parametrize("which", ["compress", "decompress"])
def test_the_walk_meets_every_fault_of_a_change_of_form(which: str) -> None:
    faults = (own_mover_killed, own_mover_replaced, reset_here, cancelled, left)
    for fault in faults:
        met = {walked(which, fault, step)[1].code for step in (0, 1, 3, 6, 9)}
        assert met & CODES[fault.__name__], (fault.__name__, met)


@pytest.mark.parametrize("which", ["copy", "copy from a", "move", "move whole"])
def test_the_walk_meets_every_fault_of_a_transfer(which: str) -> None:
    """Else the test above could not fail."""
    met = {fault.__name__: set[str]() for fault in FAULTS}
    for fault in FAULTS:
        for step in (0, 1, 3, 6, 9):
            met[fault.__name__].add(walked(which, fault, step)[1].code)
    for name in ("peers_mover_killed", "own_mover_killed", "peer_gone", "reset_here", "cancelled"):
        assert met[name] - {""}, (name, met[name])


@pytest.mark.parametrize("which", ["copy", "move"])
def test_what_failed_is_whole_after_a_retry(which: str) -> None:
    for step in range(30):
        cluster, part, met = walked(which, peers_mover_killed, step)
        if not met:
            break
        cluster.gone_movers.clear()
        if part.state == "failed":
            assert cluster.take("retry", "b", name="r1", job="j1").attempt == 2
            assert cluster.ended("b").state == "done", cluster["b"].part()
        assert cluster["b"].has(0, CHUNKS) == list(range(CHUNKS))
        assert cluster["a"].has(0, CHUNKS) == ([] if which == "move" else list(range(CHUNKS)))
        assert list(cluster.at_rest()) == []
