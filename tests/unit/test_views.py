"""What people and routers ask of the registry."""

from __future__ import annotations

from typing import Any

from lmkv import _native
from lmkv.core.messages import (
    INSTANCE_SORTS,
    Controllers,
    ControllersInfo,
    Heartbeat,
    Instances,
    InstancesInfo,
    Lookup,
    LookupInfo,
    Refused,
    Route,
    Routed,
    Status,
    StatusInfo,
)

from tests.stub_instance import LAYOUT, NAMESPACE, StubInstance
from tests.unit.test_registry import Story

OTHER = NAMESPACE.replace("weights=one", "weights=two")
TOKENS = list(range(48))  # three chunks


def hold(story: Story, stub: StubInstance, tokens: list[int]) -> StubInstance:
    """It joins, and has these tokens' chunks."""
    story.join(stub)
    registration = stub.registration
    hasher = _native.KeyHasher(
        registration.namespace, registration.group_specs, registration.chunk_tokens
    )
    chain = hasher.chain()
    chain.extend(tokens)
    reserved = stub.table.reserve(chain.keys(), 0.0)
    assert reserved is not None
    stub.table.admit(*reserved)
    story.tell(stub, *stub.changes())
    return stub


def routed(story: Story, question: Route) -> list[tuple[str, int]]:
    answer = story.ask(question)
    assert isinstance(answer, Routed), answer
    return [(each.instance, each.tokens) for each in answer.candidates]


def refused(story: Story, question: Route | Lookup | Instances) -> tuple[str, str]:
    answer = story.ask(question)
    assert isinstance(answer, Refused), answer
    return answer.code, answer.field


def test_most_tokens_come_first_then_the_least_load() -> None:
    story = Story()
    hold(story, StubInstance("a"), TOKENS[:16])
    hold(story, StubInstance("b"), TOKENS)
    hold(story, StubInstance("c"), [])
    d = hold(story, StubInstance("d"), [])
    busy = Heartbeat(d.epoch, d.number(), *d.table.sums(), running=16)
    story.tell(d, (busy, ()))
    assert routed(story, Route(1, TOKENS)) == [("b", 48), ("a", 16), ("c", 0), ("d", 0)]
    assert routed(story, Route(1, TOKENS, limit=1)) == [("b", 48)]
    assert routed(story, Route(1, TOKENS, salt="s"))[0] == ("a", 0)


def test_who_is_suspect_or_dead_gets_no_requests() -> None:
    story = Story()
    hold(story, StubInstance("a"), TOKENS)
    b = hold(story, StubInstance("b"), [])
    story.wait(4, b)
    assert story.state("a") == "suspect"
    assert routed(story, Route(1, TOKENS)) == [("b", 0)]
    story.wait(2, b)
    assert story.state("a") == "dead"
    assert routed(story, Route(1, TOKENS)) == [("b", 0)]


def test_a_model_has_classes_and_each_its_own_keys() -> None:
    """Different weights under one name: a router may send to either, by what each has."""
    story = Story()
    hold(story, StubInstance("a"), TOKENS[:16])
    hold(story, StubInstance("b", namespace=OTHER), TOKENS)
    assert routed(story, Route(1, TOKENS, "m")) == [("b", 48), ("a", 16)]


def test_the_model_is_named_where_there_are_several() -> None:
    story = Story()
    hold(story, StubInstance("a"), TOKENS)
    other = StubInstance("b", namespace=OTHER)
    other.registration.model = "n"
    hold(story, other, TOKENS)
    assert refused(story, Route(1, TOKENS)) == ("field", "model")
    assert refused(story, Route(1, TOKENS, "x")) == ("unknown_model", "model")
    assert routed(story, Route(1, TOKENS, "n")) == [("b", 48)]
    assert refused(story, Route(1, list(range(16 * 4097)), "n")) == ("too_large", "tokens")


def test_nobody_is_there() -> None:
    assert routed(Story(), Route(1, TOKENS)) == []
    assert refused(Story(), Route(1, TOKENS, "m")) == ("unknown_model", "model")


def test_a_lookup_names_those_that_cannot_share() -> None:
    story = Story()
    hold(story, StubInstance("a"), TOKENS)
    hold(story, StubInstance("b", namespace=OTHER), [])
    hold(story, StubInstance("c", layout=LAYOUT.replace("head_size=64", "head_size=32")), [])
    answer = story.ask(Lookup(1, TOKENS, like="a"))
    assert isinstance(answer, LookupInfo)
    assert answer.incompatible == {"b": "weights", "c": "head_size"}


# ------------------------------------------------------------------ instances


def page(story: Story, after: str = "", limit: int = 2) -> tuple[list[str], str]:
    answer = story.ask(Instances(1, after, limit))
    assert isinstance(answer, InstancesInfo)
    return [each.instance for each in answer.instances], answer.next


def test_pages_go_by_name() -> None:
    story = Story()
    for name in "decab":
        story.join(StubInstance(name))
    assert page(story) == (["a", "b"], "b")
    assert page(story, "b") == (["c", "d"], "d")
    assert page(story, "d") == (["e"], "")
    assert page(story, "e") == ([], "")
    assert page(story, "", 5) == (["a", "b", "c", "d", "e"], "")
    assert page(story, "", 0) == (["a"], "a")  # at least one, so that it ends
    assert page(story, "bb", 1 << 31) == (["c", "d", "e"], "")


def test_one_instance_and_what_it_differs_from() -> None:
    story = Story()
    story.join(StubInstance("b"))
    story.join(StubInstance("a", namespace=OTHER))
    answer = story.ask(Instances(1, instance="a"))
    assert isinstance(answer, InstancesInfo)
    (a,) = answer.instances
    assert (a.state, a.differs, a.differs_from) == ("incompatible", "weights", "b")
    assert refused(story, Instances(1, instance="x")) == ("unknown_instance", "instance")


def test_syncs_that_wait_are_told_apart() -> None:
    story = Story(syncs_at_once=1)
    for name in ("a", "b", "c"):
        story.join(StubInstance(name), sync=False)
    told = story.ask(Status(1, brief=True))
    assert isinstance(told, StatusInfo)
    assert (told.syncs, told.syncs_waiting) == (3, 2)


def test_a_brief_status_may_have_those_with_the_most_keys() -> None:
    story = Story()
    for name, chunks in (("a", 1), ("b", 3), ("c", 2)):
        hold(story, StubInstance(name), TOKENS[: 16 * chunks])
    b = story.registry.instances["b"]
    told = story.ask(Status(1, brief=True, top=2))
    assert isinstance(told, StatusInfo)
    assert [(each.instance, each.keys) for each in told.instances] == [("b", 3), ("c", 2)]
    assert (told.announced_keys, told.retracted_keys) == (6, 0)
    b.state, b.number = "dead", -1
    told = story.ask(Status(1, brief=True, top=1 << 31))
    assert isinstance(told, StatusInfo)
    assert [each.instance for each in told.instances] == ["c", "a"]


def test_a_brief_status_counts_what_the_whole_one_lists() -> None:
    story = Story(syncs_at_once=3)
    a = story.join(StubInstance("a"))
    story.join(StubInstance("b", namespace=OTHER))
    story.join(StubInstance("c"), sync=False)
    whole, brief = story.ask(Status(1)), story.ask(Status(1, brief=True))
    assert isinstance(whole, StatusInfo) and isinstance(brief, StatusInfo)
    assert brief.instances == []
    assert brief.states == {"live": 1, "incompatible": 1, "syncing": 1}
    assert sorted(each.state for each in whole.instances) == sorted(brief.states)
    assert (brief.syncs, brief.syncs_waiting, brief.lag) == (1, 0, 0)
    story.wait(2, a)
    controllers = story.ask(Controllers(1))
    assert isinstance(controllers, ControllersInfo)
    (one,) = controllers.controllers
    assert (one.instances, one.lag, one.epoch) == (3, 2, brief.epoch)


# ------------------------------------------------------------------ pages of instances


def listed(story: Story, **question: Any) -> tuple[list[str], int]:
    answer = story.ask(Instances(1, **question))
    assert isinstance(answer, InstancesInfo), answer
    return [each.instance for each in answer.instances], answer.total


def crowd() -> Story:
    """`a` to `e`; `b` has most tokens and `c` the fullest pool, `e` is incompatible."""
    story = Story()
    told = {"a": (1, 9), "b": (7, 5), "c": (7, 1), "d": (0, 9)}
    for name, (hits, free) in told.items():
        stub = story.join(StubInstance(name))
        stub.registration.version = "0.1" if name < "c" else "0.2"
        beat = Heartbeat(
            stub.epoch, stub.number(), *stub.table.sums(), {"hit_pool": hits},
            pool_granules={"free": free, "readable": 10 - free, "limbo": hits},
        )  # fmt: skip
        story.tell(stub, (beat, ()))
    story.join(StubInstance("e", namespace=OTHER))
    return story


def test_instances_in_any_order_a_page_at_a_time() -> None:
    story = crowd()
    assert listed(story, sort="hit_tokens", descending=True) == (["b", "c", "a", "d", "e"], 5)
    assert listed(story, sort="hit_tokens") == (["d", "e", "a", "b", "c"], 5)
    assert listed(story, sort="fill", descending=True, limit=2, offset=0) == (["c", "b"], 5)
    assert listed(story, sort="fill", descending=True, limit=2, offset=4) == (["e"], 5)
    assert listed(story, sort="instance", offset=5) == ([], 5)
    assert listed(story, sort="state")[0][0] == "e"
    for sort in INSTANCE_SORTS:
        assert sorted(listed(story, sort=sort)[0]) == ["a", "b", "c", "d", "e"]
    code = refused(story, Instances(1, sort="beauty"))
    assert code == ("field", "sort")


def test_instances_that_a_filter_lets_through() -> None:
    story = crowd()
    assert listed(story, filter="incompatible") == (["e"], 1)
    assert listed(story, filter="0.2", sort="instance") == (["c", "d"], 2)
    assert listed(story, filter="0.2", limit=1) == (["c"], 2)
    assert listed(story, filter="0.2", limit=1, after="c") == (["d"], 2)
    assert listed(story, filter="b", sort="fill") == (["b"], 1)
    assert listed(story, filter="nothing") == ([], 0)
    assert story.ask(Status(1)).versions == {"0.1": 2, "0.2": 2, "": 1}  # type: ignore[union-attr]
