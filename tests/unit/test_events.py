"""The controller's history: questions that wait, and what is forgotten."""

from __future__ import annotations

from lmkv.controller import events
from lmkv.controller.events import History
from lmkv.core.clock import ManualClock
from lmkv.core.messages import Events, Subscribe


def kinds(answer: Events | None) -> list[str]:
    assert answer is not None
    return [each.kind for each in answer.events]


def history() -> tuple[History, ManualClock]:
    clock = ManualClock()
    return History(77, clock), clock


def test_a_question_after_the_newest_event_waits_for_the_next() -> None:
    told, clock = history()
    assert told.ask(b"x", Subscribe(1, after=0, wait=5)) is None
    assert told.due() == []
    told.add("registered", "a", "epoch 1")
    clock.advance(2)
    ((connection, answer),) = told.due()
    assert (connection, answer.request, answer.epoch) == (b"x", 1, 77)
    (event,) = answer.events
    assert (event.id, event.kind, event.instance, event.age) == (1, "registered", "a", 2)
    assert told.due() == []


def test_a_question_waits_no_longer_than_it_says() -> None:
    told, clock = history()
    told.ask(b"x", Subscribe(1, wait=5))
    told.ask(b"y", Subscribe(2, wait=1000))  # at most 30
    clock.advance(5)
    assert [(who, kinds(answer)) for who, answer in told.due()] == [(b"x", [])]
    clock.advance(24)
    assert told.due() == []
    clock.advance(1)
    assert [who for who, _ in told.due()] == [b"y"]


def test_who_does_not_wait_is_answered_at_once() -> None:
    told, _ = history()
    answer = told.ask(b"x", Subscribe(1))
    assert (kinds(answer), answer and (answer.first, answer.last)) == ([], (1, 0))
    told.add("registered", "a")
    told.add("left", "a")
    assert kinds(told.ask(b"x", Subscribe(1, after=1, wait=5))) == ["left"]
    assert kinds(told.ask(b"x", Subscribe(1, after=9, wait=5))) == []  # another life's number


def test_a_connection_has_one_question() -> None:
    told, _ = history()
    told.ask(b"x", Subscribe(1, wait=5))
    told.ask(b"x", Subscribe(2, wait=5))
    told.add("left", "a")
    assert [answer.request for _, answer in told.due()] == [2]
    told.ask(b"x", Subscribe(3, after=1, wait=5))
    assert told.ask(b"x", Subscribe(4)) is not None
    told.add("left", "b")
    assert told.due() == []


def test_what_is_kept_and_sent_is_bounded() -> None:
    told, _ = history()
    for i in range(events.KEPT + 10):
        told.add("registered", str(i))
    answer = told.ask(b"x", Subscribe(1))
    assert answer is not None
    assert (answer.first, answer.last) == (11, events.KEPT + 10)
    assert [answer.events[0].id, len(answer.events)] == [11, events.SENT]
    answer = told.ask(b"x", Subscribe(1, after=events.KEPT + 8))
    assert answer and [each.id for each in answer.events] == [events.KEPT + 9, events.KEPT + 10]


def test_too_many_questions_are_answered_at_once() -> None:
    told, _ = history()
    for i in range(events.WAITING):
        assert told.ask(str(i).encode(), Subscribe(1, wait=5)) is None
    assert told.ask(b"x", Subscribe(1, wait=5)) is not None
