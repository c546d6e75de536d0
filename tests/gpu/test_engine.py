"""Copies beside torch's work on a real card: after what its stream has, and in a capture."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from lmkv._native import SlotStatus

from tests.gpu.cards import PATHS, Card, OnReal, RealCards
from tests.kernels.bodies import World
from tests.kernels.cases import kv

pytestmark = pytest.mark.gpu

GOOD = SlotStatus.GOOD
LONG_CYCLES = 400_000_000  # about 0.2 s of a card at 2 GHz
WAIT_S = 20.0


@pytest.fixture
def device(real_cards: RealCards) -> Iterator[OnReal]:
    with real_cards.fresh() as device:
        yield device


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["default stream", "a stream of its own"])
def stream(request: pytest.FixtureRequest, device: OnReal) -> Any:
    """What torch's work goes into, as a context."""
    import torch

    own = request.param != "default stream"
    return torch.cuda.stream(torch.cuda.Stream()) if own else nullcontext()


def busy() -> int:
    """The current stream, which has something long to do first. All kernels that come behind it
    have run before: the driver may wait for the whole card where it loads one."""
    import torch

    torch.cuda._sleep(LONG_CYCLES)
    return torch.cuda.current_stream().cuda_stream


def warm_up(card: Card, blocks: list[list[int]], path: str) -> None:
    """The kernels of the copies, and torch's."""
    import torch

    card.gather(blocks, path)
    assert card.scatter(blocks, path) == [GOOD] * 2
    tensor = card.device.tensor
    before = tensor.clone()
    tensor.fill_(7)
    tensor.copy_(before)
    torch.cuda._sleep(1)
    torch.cuda.synchronize()


def test_a_gather_comes_after_the_engines_forward(device: OnReal, stream: Any, path: str) -> None:
    """One that did not wait would take the bytes that were there before."""
    import torch

    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    card, blocks = Card(device, world), world.some_blocks()
    card.know_slots()
    late = np.random.default_rng(9).integers(0, 256, world.memory.size, np.uint8)
    forward = torch.from_numpy(late).to("cuda:0")
    warm_up(card, blocks, path)
    with stream:
        engine = busy()
        device.tensor.copy_(forward)
        mark = card.gpu.mark(engine)
        assert not mark.done()
        card.gather(blocks, path, after=mark)
        assert mark.done()
    np.copyto(world.memory, late)
    for n, of_chunk in enumerate(blocks):
        assert np.array_equal(world.slots[n], world.slot_like_the_host(of_chunk, n))
    torch.cuda.synchronize()
    card.close()


def test_a_scatter_comes_after_the_engines_forward(device: OnReal, stream: Any, path: str) -> None:
    """What it brings stays; one that did not wait would be overwritten."""
    import torch

    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    card, blocks = Card(device, world), world.some_blocks()
    card.know_slots()
    card.gather(blocks, path)
    payloads = [world.payload(of_chunk) for of_chunk in blocks]
    world.memory[:] = 7
    expected = world.expect_scatter(blocks, payloads)
    warm_up(card, blocks, path)
    with stream:
        engine = busy()
        device.tensor.fill_(7)
        mark = card.gpu.mark(engine)
        assert not mark.done()
        assert card.scatter(blocks, path, after=mark) == [GOOD] * 2
    torch.cuda.synchronize()
    assert np.array_equal(card.memory(), expected)
    card.close()


def test_a_capture_outlives_copies_in_another_thread(device: OnReal, path: str) -> None:
    """torch captures in the mode in which a call of another thread may end it."""
    import torch

    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    card, blocks = Card(device, world), world.some_blocks()
    number, graph = torch.zeros(1024, device="cuda:0"), torch.cuda.CUDAGraph()
    number += 1  # a kernel that is loaded while a graph is captured may end the capture
    torch.cuda.synchronize()
    copied, stop, errors = threading.Semaphore(0), threading.Event(), []

    def copies() -> None:
        try:
            while not stop.is_set():
                card.know_slots()
                card.gather(blocks, path)
                assert card.scatter(blocks, path) == [GOOD] * 2
                card.close()
                copied.release()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=copies, daemon=True)
    with torch.cuda.graph(graph):
        number += 1
        thread.start()
        for _ in range(3):
            assert copied.acquire(timeout=WAIT_S), errors
            number += 1
        stop.set()
        thread.join(WAIT_S)
    assert not thread.is_alive() and not errors
    number.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert bool((number == 4).all())
    for n, of_chunk in enumerate(blocks):
        assert np.array_equal(world.slots[n], world.slot_like_the_host(of_chunk, n))


def test_a_mark_is_done_when_the_stream_is(device: OnReal) -> None:
    import torch

    card = Card(device, World(kv("small", "lbthp", 64, 4)))
    engine = busy()
    mark, deadline = card.gpu.mark(engine), time.monotonic() + WAIT_S
    assert not mark.done()
    torch.cuda.synchronize()
    while not mark.done():
        assert time.monotonic() < deadline
