"""A real controller with its real web process, for tests that ask it."""

from __future__ import annotations

from pathlib import Path

from lmkv import _native
from lmkv.core.messages import Leave, Left

from tests import http_client
from tests.contract.test_controller import Controller, Instance, free_port, until
from tests.http_client import Answer
from tests.stub_instance import NAMESPACE

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


def leave(instance: Instance) -> None:
    instance.tell((Leave(instance.stub.epoch), ()))
    instance.take(Left)
