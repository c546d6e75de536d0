"""A real controller with its real web process, for tests that ask it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmkv import _native
from lmkv.core.messages import Leave, Left

from tests import http_client
from tests.contract.test_controller import Controller, Instance, until
from tests.http_client import Answer
from tests.ports import free_port
from tests.stub_instance import HOST_B, NAMESPACE, StubInstance

TOKENS = list(range(40))  # two chunks of 16, and a tail


class Web(Controller):
    def __init__(self, *options: str, port: int = 0) -> None:
        super().__init__(port or free_port(3), *options, web=True)

    def ask(self, path: str, body: object = None, method: str = "", **headers: str) -> Answer:
        return http_client.ask(self.http, path, body, method, **headers)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def up(self) -> None:
        until(lambda: self.ask("/readyz").status == 200)


def prompt_keys(tokens: list[int]) -> bytes:
    chain = _native.KeyHasher(NAMESPACE, ["kind=full\n"], 16).chain()
    chain.extend(tokens)
    return chain.keys()


def store(instance: Instance, *each: bytes) -> None:
    """Admit keys that are made of tokens."""
    reserved = instance.stub.table.reserve(b"".join(each), 0.0)
    assert reserved is not None
    instance.stub.table.admit(*reserved)
    instance.tell(*instance.stub.changes())
    instance.beat()


@contextmanager
def lasting(*options: str) -> Iterator[Web]:
    """Instances only come to it and leave in order; dead is who was silent for minutes."""
    running = Web("--dead-after-beats", "1000", "--suspect-after-beats", "999", *options)
    running.up()
    yield running
    status, said = running.end()
    assert (status, said) == (0, ""), said


@contextmanager
def pair_at(web: Web) -> Iterator[tuple[Instance, Instance]]:
    """Instances `a` and `b`, on two hosts."""
    a, b = StubInstance("a", 1), StubInstance("b", 2, host=HOST_B)
    a.registration.serving_url, a.registration.dp_rank = "http://127.0.0.1:8000", 3
    with Instance(a, web) as first, Instance(b, web) as second:
        for each in (first, second):
            each.join()
            each.beat()
        yield first, second
        for each in (first, second):
            leave(each)


def leave(instance: Instance) -> None:
    instance.tell((Leave(instance.stub.epoch), ()))
    instance.take(Left)
