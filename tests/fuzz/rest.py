"""REST, driven by schemathesis: every operation of a live server's own description, with values
that it allows and values that it does not. What is answered must be as described, and never 5xx."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests import http_client
from tests.contract.test_controller import Instance
from tests.stub_instance import StubInstance
from tests.web import Web

ENDLESS = "/v1/events"
DEADLINE = 60.0
NOT_SERVED = 501  # what this release does not do, by name


@contextmanager
def served() -> Iterator[Web]:
    """A controller with one instance, so that lookups have whom to ask about."""
    beats = ("--dead-after-beats", "1000000")
    web = Web("--http-rate", "1000000", "--compat", "lmcache", *beats)
    try:
        web.up()
        with Instance(StubInstance("a"), web) as instance:
            instance.join()
            instance.tell(*instance.stub.store(1, 2, 3))
            instance.beat()
            yield web
    finally:
        status, said = web.end()
    assert (status, said) == (0, ""), said


def run(web: Web, examples: int, number: int | None = None) -> int:
    """Operations that were tried. Raises what is found, with the request as a curl line."""
    import schemathesis
    from schemathesis import GenerationMode

    number = random.getrandbits(32) if number is None else number
    schema = schemathesis.openapi.from_url(web.http + "/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS:
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _try(operation, mode, examples, number)
        tried += 1
    _events(web, examples, number)
    return tried + 1


def _try(operation: Any, mode: Any, examples: int, number: int) -> None:
    from schemathesis.checks import CHECKS

    wanted = ["status_code_conformance", "content_type_conformance"]
    if operation.path.startswith("/v1/"):  # it does not know the tuples of LMCache's paths
        wanted.append("response_schema_conformance")
    checks = CHECKS.get_by_names(wanted)

    @_bounded(examples, number)
    @given(operation.as_strategy(generation_mode=mode))
    def answers_as_described(case: Any) -> None:
        answer = case.call_and_validate(checks=checks, timeout=DEADLINE)
        assert answer.status_code < 500 or answer.status_code == NOT_SERVED, answer.text

    with suppress(Unsatisfiable):  # no parameter: nothing can be wrong
        answers_as_described()


def _events(web: Web, examples: int, number: int) -> None:
    """Its answer has no end: only its head is looked at."""
    latin = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80)

    @_bounded(examples, number)
    @given(latin, st.integers() | latin)
    def heads(last: str, history: object) -> None:
        status = http_client.head(web.http, ENDLESS, {"history": str(history)}, last)
        assert status in (200, 400), (status, last, history)

    heads()


def _bounded(examples: int, number: int) -> Any:
    def decorate(test: Any) -> Any:
        bounds = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        return seed(number)(bounds(test))

    return decorate
