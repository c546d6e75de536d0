"""One simulated instance: a real agent, an engine that computes one prompt at a time, a worker.

    open() -> ask(tokens) ... -> leave()

A request goes the way that vLLM's scheduler takes it: begin -> match until it is known -> load ->
compute the rest, at the stated rate -> store -> finished. The engine itself caches nothing, so all
that hits comes from pools.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine, Rank
from lmkv.agent.links import Link
from lmkv.agent.options import Options
from lmkv.agent.transfers import Geometry
from lmkv.core.clock import Clock
from lmkv.core.config import InstanceConfig
from lmkv.core.messages import AnyMessage, Locate, Located, Message
from lmkv.core.steps import LoadResult
from lmkv.sim.hub import Hub, HubLink
from lmkv.sim.worker import CONTROL, Rates, Worker

CHUNK = 256  # tokens
STEP = 0.005  # seconds between two passes of a scheduler that waits
NAMESPACE, SPECS = "model=simulated\n", ["kind=full\n"]
LAYOUT = "head_size=1\nsegments=1\n"


@dataclass
class Shape:
    """What all instances have in common."""

    slots: int
    chunk_bytes: int
    rates: Rates
    prefill: float  # tokens per second


@dataclass
class Request:
    """As vLLM's, for what the agent reads of it."""

    id: str
    tokens: list[int]
    began: float
    blocks: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.tokens)


@dataclass
class Seen:
    """What all instances of a run have met, in seconds."""

    locates: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 20))
    switched: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 20))  # of them, resent
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 20))  # until known
    locates_sent: int = 0
    resent: int = 0  # of them, to the next controller
    late: int = 0  # answers after the deadline: when they came is not known
    begun: int = 0
    ended: int = 0


class Questions:
    """An instance's locates that are not answered yet, and when they were first asked."""

    KEPT = 1024

    def __init__(self, clock: Clock, deadline: float, seen: Seen) -> None:
        self._clock = clock
        self._deadline = deadline
        self._seen = seen
        self._asked: dict[int, tuple[float, bool]] = {}  # by request; True: again

    def sent(self, message: Message) -> None:
        if not isinstance(message, Locate):
            return
        self._seen.locates_sent += 1
        again = message.request in self._asked
        self._seen.resent += again
        began = self._asked[message.request][0] if again else self._clock()
        self._asked[message.request] = began, again
        while len(self._asked) > self.KEPT:
            del self._asked[next(iter(self._asked))]

    def heard(self, message: AnyMessage) -> None:
        if isinstance(message, Located) and message.request in self._asked:
            began, again = self._asked.pop(message.request)
            seconds = self._clock() - began
            if seconds > self._deadline:
                self._seen.late += 1
                return
            self._seen.locates.append(seconds)
            if again:
                self._seen.switched.append(seconds)


class AskingLink(HubLink):
    """Tells `questions` what passes over it."""

    def __init__(
        self, address: str, hub: Hub, wake: Callable[[], None], urgent: bool, questions: Questions
    ) -> None:
        super().__init__(address, hub, wake, urgent)
        self._questions = questions

    def send(self, message: Message, *arrays: bytes) -> bool:
        sent = super().send(message, *arrays)
        if sent:
            self._questions.sent(message)
        return sent

    def receive(self, limit: int = 256) -> Iterator[tuple[AnyMessage, list[bytes]]]:
        for message, frames in super().receive(limit):
            self._questions.heard(message)
            yield message, frames


class Instance:
    def __init__(
        self,
        name: str,
        config: InstanceConfig,
        shape: Shape,
        hub: Hub,
        seen: Seen,
        find: Callable[[str, int], Worker | None],
    ) -> None:
        self.name = name
        self._shape = shape
        self._hub = hub
        self._seen = seen
        self._questions = Questions(hub.clock, config.locate_deadline, seen)
        self._controllers = set(config.controllers)
        self._links: list[HubLink] = []
        self._turn_at = float("inf")  # when the background is due, at the earliest
        self._waiting: dict[str, Request] = {}  # not known yet what is loaded
        self._queue: deque[Request] = deque()  # to be computed
        self._computing: Request | None = None
        self._next_block, self._asked = 1, 0
        wake = partial(self._soon, 0.0)
        self.worker = Worker(name, shape.chunk_bytes, hub, shape.rates, wake, find)
        engine = Engine(
            name,
            lambda isolation: NAMESPACE + isolation,
            SPECS,
            [Geometry(CHUNK, CHUNK, shape.chunk_bytes)],
            shape.slots,
            shape.slots,
            [Rank(self.worker.info, CONTROL, [LAYOUT], [1])],
            model="simulated",
        )
        self.agent = Agent(config, engine, hub.clock, self._connect)

    def _connect(self, address: str) -> Link:
        inner = self.worker.link(address)
        if inner is not None:
            return inner
        # Answers to questions come over links to query sockets; details of peers over a state link
        # like the background's own.
        query = address not in self._controllers
        wake = self._match_all if query else self._heard
        self._links = [link for link in self._links if not link.socket.closed]
        link = AskingLink(address, self._hub, wake, query, self._questions)
        self._links.append(link)
        return link

    def open(self) -> None:
        self.agent.background.open()
        self._turn()

    def leave(self) -> None:
        self.agent.background.leave()
        self.agent.close()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._queue or self._computing) or self.agent.stores.open > 0

    # ------------------------------------------------------------ background

    def _soon(self, seconds: float) -> None:
        at = self._hub.clock() + seconds
        if at < self._turn_at:
            self._turn_at = at
            self._hub.after(seconds, partial(self._turn_if_due, at))

    def _turn_if_due(self, at: float) -> None:
        if at == self._turn_at:  # else an earlier one was
            self._turn()

    def _heard(self) -> None:
        self._turn()
        self._match_all()

    def _turn(self) -> None:
        self.agent.background.turn()
        self._turn_at = float("inf")
        self._soon(self.agent.background.due())
        self._look_again()

    def _look_again(self) -> None:
        for link in self._links:
            link.look_again()

    # ------------------------------------------------------------ requests

    def ask(self, tokens: list[int]) -> None:
        self._asked += 1
        self._seen.begun += 1
        request = Request(f"{self.name}-{self._asked}", tokens, self._hub.clock())
        self.agent.begin(request.id, tokens, b"", {}, Options())
        self._waiting[request.id] = request
        self._pass(request)

    def _pass(self, request: Request) -> None:
        """A scheduler's pass, and the next one while it is not known what can be loaded."""
        if self._match(request):
            self._hub.after(STEP, partial(self._pass, request))
        self._look_again()

    def _match_all(self) -> None:
        for request in list(self._waiting.values()):
            self._match(request)
        self._look_again()

    def _match(self, request: Request) -> bool:
        """Whether it still waits."""
        if request.id not in self._waiting:
            return False
        tokens = self.agent.match(request.id, 0, len(request.tokens))
        if tokens is None:
            return True
        del self._waiting[request.id]
        self._seen.waits.append(self._hub.clock() - request.began)
        blocks = -(-len(request.tokens) // CHUNK)
        request.blocks = list(range(self._next_block, self._next_block + blocks))
        self._next_block += blocks
        if not tokens:
            self.agent.allocated(request.id, [], 0)
            self._queue.append(request)
            self._compute_next()
            return False
        self.agent.allocated(request.id, [request.blocks], tokens)
        for load in self.agent.step([], request.blocks).loads:
            self.worker.load(load, partial(self._loaded, request))
        request.num_computed_tokens = tokens
        return False

    def _loaded(self, request: Request, result: LoadResult) -> None:
        self.agent.loaded(request.id, result)
        self._queue.append(request)
        self._compute_next()

    def _compute_next(self) -> None:
        if self._computing is not None or not self._queue:
            return
        request = self._computing = self._queue.popleft()
        left = len(request.tokens) - request.num_computed_tokens
        self.agent.rates.prefill.scheduled({request.id: left}, {request.id: request})
        self._hub.after(left / self._shape.prefill, partial(self._computed, request))

    def _computed(self, request: Request) -> None:
        self._computing = None
        request.num_computed_tokens = len(request.tokens)
        self.agent.rates.prefill.output()
        first, last = self.agent.plan(request.id, request.tokens, len(request.tokens))
        stores = [(request.id, first, last, [request.blocks])] if last > first else []
        for store in self.agent.step(stores, []).stores:
            self.worker.store(store)
        self.agent.finished(request.id)
        self._seen.ended += 1
        self._compute_next()
