"""Who is registered, and whether what is known of them is true. No sockets; the clock is given.

hear(connection, message, frames) and tick() return what must be sent, as (connection, message,
arrays); locate(message, frames) answers the query socket; `views` answers what people ask. An
instance registers (`Welcome` or `Refused`), then sends one numbered stream. A gap in it, or a
heartbeat whose sums are not the directory's, is mended by a full sync (`Resync`), of which a few
run at once. Whoever is not heard is suspect (not handed out), then dead (dropped). A message of a
connection or an epoch that is not registered is answered `Refused(not_registered)`: registering is
what mends that. What happens is told to `history`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmkv.controller.admission import unfit
from lmkv.controller.events import History
from lmkv.controller.flows import Flows
from lmkv.controller.instance import Ages, Drift, Instance, add, differs, group, hosts
from lmkv.controller.job_table import JobTable
from lmkv.controller.peers import Peers
from lmkv.controller.pin_table import PinTable
from lmkv.controller.placement import Placement
from lmkv.controller.syncs import Syncs
from lmkv.core import wire
from lmkv.core.clock import Clock, monotonic
from lmkv.core.config import ControllerConfig
from lmkv.core.geometry import unfit_ranks
from lmkv.core.identity import new_epoch
from lmkv.core.messages import (
    MAX_KEYS,
    PROTOCOL_MAX,
    Announce,
    AnyMessage,
    Heartbeat,
    HeartbeatOk,
    Job,
    Leave,
    Left,
    Locate,
    Message,
    Peer,
    PeerInfo,
    PinsHeld,
    Probe,
    ProbeOk,
    Ranks,
    Refused,
    Register,
    Resync,
    Retract,
    SyncEnd,
    SyncSlice,
    Unsupported,
    Welcome,
)

Arrays = tuple[bytes, ...]
Out = tuple[bytes, Message, Arrays]

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
PROBES = 2  # not answered: the old life is over
DEAD_KEPT = 600.0  # seconds in which a dead instance is listed


class Registry:
    def __init__(
        self, config: ControllerConfig, clock: Clock = monotonic, query_port: int = 0
    ) -> None:
        self.config = config
        self.name = config.controller_id or "controller"
        self.epoch = new_epoch()
        self.placement = Placement(clock)
        self.history = History(self.epoch, clock)
        self.flows = Flows(clock)
        self.jobs = JobTable(self.history, clock)
        self.pins = PinTable(clock)
        self.peers = Peers(config.peers)
        self.instances: dict[str, Instance] = {}  # by id, dead ones too
        self.drifts = 0
        self.resyncs = 0
        self.bad_messages = 0  # that were none of ours
        self.heartbeats = 0
        self.announced_keys = 0
        self.retracted_keys = 0
        self.hit_tokens: dict[str, int] = {}  # of all instances, since the start
        self.miss_tokens: dict[str, int] = {}
        self.ages = Ages()
        self.query_port = query_port or config.query_port or config.port + 1
        self.clock = clock
        self.started = self._ticked = self._told = clock()
        self._connections: dict[bytes, Instance] = {}
        self._strangers: dict[bytes, float] = {}  # told to register, and when
        self._warming = True
        self._warms_since = self.started
        self._deserted = False  # all who were here have died
        self._awaited: set[str] = set()  # those who registered early and are not yet synced
        self._syncs = Syncs(config.syncs_at_once, config.sync_timeout, config.heartbeat, clock)
        self._handlers: dict[type, Callable[[Instance, Any, list[bytes]], list[Out]]] = {
            Announce: self._announce,
            Retract: self._retract,
            SyncSlice: self._slice,
            SyncEnd: self._sync_end,
            Heartbeat: self._heartbeat,
            Ranks: self._ranks,
            ProbeOk: lambda instance, message, frames: [],
            Leave: self._leave,
            Job: self._job,
            PinsHeld: self._pins,
        }

    @property
    def state(self) -> str:
        return "warming" if self._warming else "ready"

    def syncing(self, instance: Instance) -> bool:
        return not instance.synced or instance.name in self._syncs

    @property
    def syncs(self) -> int:
        """Full syncs that run or wait."""
        return len(self._syncs)

    @property
    def syncs_waiting(self) -> int:
        return len(self._syncs) - self._syncs.running

    def first(self, instance: Instance) -> Instance:
        """The one of its model that has been here longest: with it others are compared."""
        model = instance.registration.model
        for other in self.instances.values():
            if other.number >= 0 and other.registration.model == model:
                return other
        return instance

    def instance_at(self, connection: bytes) -> Instance | None:
        """The one that has registered on it."""
        return self._connections.get(connection)

    # ------------------------------------------------------------ in

    def hear(self, connection: bytes, message: AnyMessage, frames: list[bytes]) -> list[Out]:
        """A message of the state socket. WireError or ValueError: its contents are wrong."""
        if isinstance(message, Register):
            return self._register(connection, message)
        if isinstance(message, Peer):
            return [(connection, self._peer(message), ())]
        handler = self._handlers.get(type(message))
        if handler is None:
            return [(connection, unsupported(message), ())]
        instance = self._connections.get(connection)
        if instance is None or message.epoch != instance.epoch:  # type: ignore[union-attr]
            return self._stranger(connection)
        self._alive(instance)
        if isinstance(message, (Announce, Retract, SyncSlice, SyncEnd, Heartbeat)):
            if message.seq != instance.seq + 1:
                self._syncs.want(instance.name, "gap")
            instance.seq = message.seq
        return handler(instance, message, frames) + self._start_syncs()

    def _alive(self, instance: Instance) -> None:
        instance.heard = self.clock()
        instance.probes = 0
        if instance.state == "suspect":
            instance.state = "live"
            self.placement.unfit.discard(instance.number)
            self.history.add("back", instance.name, "it was suspect")

    def _stranger(self, connection: bytes) -> list[Out]:
        """Tell it once a heartbeat: each answer makes it register anew."""
        now = self.clock()
        if now - self._strangers.get(connection, float("-inf")) < self.config.heartbeat:
            return []
        if len(self._strangers) < self.config.max_instances:
            self._strangers[connection] = now
        text = "this connection has not registered under this epoch: register first"
        return [(connection, Refused("not_registered", text), ())]

    # ------------------------------------------------------------ register

    def _register(self, connection: bytes, message: Register) -> list[Out]:
        refused = unfit(message, self.config.cluster, self._connections.get(connection))
        if refused is not None:
            return [(connection, refused, ())]
        old = self.instances.get(message.instance)
        if old is not None and old.number >= 0:
            if old.epoch != message.epoch and old.connection != connection:
                return self._second_life(old, connection)
            same = old.group == group(message)
            same = same and hosts(old.registration.ranks) == hosts(message.ranks)
            if same and old.epoch == message.epoch:  # its entries stay until it has stated all
                self._connections.pop(old.connection, None)
                old.registration, old.connection, old.seq = message, connection, 0
                self._alive(old)
                return self._welcome(old)
            self._drop(old)
        instance = Instance(message, connection, self.clock())
        if len(self._connections) >= self.config.max_instances or not self.placement.add(instance):
            text = f"this controller serves at most {self.config.max_instances} instances"
            return [(connection, Refused("too_large", text), ())]
        self._tell_registered(instance, old)
        self.instances[message.instance] = instance
        return self._welcome(instance)

    def _tell_registered(self, instance: Instance, old: Instance | None) -> None:
        again = old is not None and old.epoch == instance.epoch
        text = "it registered again" if again else f"epoch {instance.epoch:016x}"
        self.history.add("back" if again else "registered", instance.name, text)
        first = self.first(instance)
        if first.group != instance.group:
            field = differs(first.registration, instance.registration)
            text = f"{field} differs from that of {first.name}: they do not share"
            self.history.add("incompatible", instance.name, text)

    def _welcome(self, instance: Instance) -> list[Out]:
        config = self.config
        self._connections[instance.connection] = instance
        self.peers.use(instance.name, instance.registration.controllers)
        self._strangers.pop(instance.connection, None)
        instance.synced = False
        if self._deserted:  # it was cut off, perhaps: what they hold is not known here now
            self._warming, self._warms_since, self._deserted = True, self.clock(), False
        if self._warming and self.clock() - self._warms_since < config.warming_least:
            self._awaited.add(instance.name)
        sync = self._syncs.welcome(instance.name)
        if sync:
            self._begin_sync(instance, "new")
        welcome = Welcome(
            PROTOCOL_MAX,
            self.name,
            self.epoch,
            self.query_port,
            self.state,
            config.heartbeat,
            config.suspect_after_beats * config.heartbeat,
            config.dead_after_beats * config.heartbeat,
            config.touched_interval,
            MAX_KEYS,
            sync,
        )
        return [(instance.connection, welcome, ())]

    def _second_life(self, old: Instance, connection: bytes) -> list[Out]:
        """Its name is taken by an epoch that may live; ask that one, and let the new one try again
        until two questions were not answered (`tick`)."""
        text = (
            f"instance {old.name!r} lives under epoch {old.epoch:016x}; "
            f"it is asked {PROBES} times, and replaced if it does not answer"
        )
        out: list[Out] = [(connection, Refused("instance_alive", text, "epoch"), ())]
        return out + (self._probe(old) if not old.probes else [])

    def _probe(self, instance: Instance) -> list[Out]:
        instance.probes += 1
        instance.probed = self.clock()
        return [(instance.connection, Probe(instance.epoch), ())]

    # ------------------------------------------------------------ the stream

    def _announce(self, instance: Instance, message: Announce, frames: list[bytes]) -> list[Out]:
        self.announced_keys += wire.counts(frames, KEY, PLACE, COUNTER)
        self.placement.directory.announce(instance.number, *frames)
        return []

    def _retract(self, instance: Instance, message: Retract, frames: list[bytes]) -> list[Out]:
        self.retracted_keys += wire.counts(frames, KEY, PLACE, COUNTER)
        self.placement.directory.retract(instance.number, *frames)
        return []

    def _slice(self, instance: Instance, message: SyncSlice, frames: list[bytes]) -> list[Out]:
        wire.counts(frames, KEY, PLACE, COUNTER)
        if self._syncs.progress(instance.name, message.sync):
            directory = self.placement.directory
            new = directory.sync_slice(instance.number, message.first, message.last, *frames)
            instance.drift.add(*new)
        return []

    def _sync_end(self, instance: Instance, message: SyncEnd, frames: list[bytes]) -> list[Out]:
        if self._syncs.progress(instance.name, message.sync):
            self._syncs.end(instance.name)
            directory = self.placement.directory
            drift = instance.ended = instance.drift
            drift.gone = directory.end_sync(instance.number)
            drift.keys_after = directory.sums(instance.number)[0]
            if drift.reason == "drift":
                instance.mended = drift
            instance.synced = True
            self._awaited.discard(instance.name)
        return []

    def _heartbeat(self, instance: Instance, beat: Heartbeat, frames: list[bytes]) -> list[Out]:
        self.heartbeats += 1
        instance.count(beat)
        add(self.hit_tokens, beat.hit_tokens)
        add(self.miss_tokens, beat.miss_tokens)
        self.ages.add(beat)
        self.flows.add(instance.name, beat.peer_bytes)
        self.placement.weigh(instance, instance.load)
        if instance.synced and instance.name not in self._syncs:
            sums = self.placement.directory.sums(instance.number)
            instance.judged += 1
            if sums != (beat.count, beat.sum_first, beat.sum_second):
                self.drifts += 1
                instance.drifts += 1
                text = f"{sums[0]} slots here, {beat.count} there, or other ones"
                self.history.add("drift", instance.name, text)
                self._syncs.want(instance.name, "drift")
            elif beat.data_version > instance.registration.data_version:
                self._syncs.want(instance.name, "gap")
        else:
            self._syncs.beat(instance.name)
        answer = HeartbeatOk(self.epoch, instance.seq, self.state)
        return [(instance.connection, answer, ())]

    def _start_syncs(self) -> list[Out]:
        out: list[Out] = []
        for name, number, reason in self._syncs.start():
            instance = self.instances[name]
            self._begin_sync(instance, reason)
            self.resyncs += 1
            self.history.add("resync", name, reason)
            out.append((instance.connection, Resync(number, reason), ()))
        return out

    def _begin_sync(self, instance: Instance, reason: str) -> None:
        directory = self.placement.directory
        directory.begin_sync(instance.number)
        keys = directory.sums(instance.number)[0]
        instance.drift = Drift(instance.drift.number + 1, reason, keys)

    def sync(self, instance: Instance) -> list[Out]:
        """A full sync, since somebody wants one."""
        self._syncs.want(instance.name, "asked")
        return self._start_syncs()

    def _ranks(self, instance: Instance, message: Ranks, frames: list[bytes]) -> list[Out]:
        if (wrong := unfit_ranks(message.ranks)) is not None:
            raise wire.WireError(f"ranks: {wrong}", "ranks")
        registration = instance.registration
        moved = hosts(registration.ranks) != hosts(message.ranks)
        registration.data_version, registration.ranks = message.data_version, message.ranks
        self.peers.use(instance.name, message.controllers)
        if moved:  # the directory has the host of each instance: begin with another number
            self.placement.drop(instance)
            if not self.placement.add(instance):
                self._drop(instance)
                return self._stranger(instance.connection)
            instance.synced = False
            self._syncs.want(instance.name, "new")
        return []

    def _job(self, instance: Instance, message: Job, frames: list[bytes]) -> list[Out]:
        self.jobs.take(instance, message.part)
        return []

    def _pins(self, instance: Instance, message: PinsHeld, frames: list[bytes]) -> list[Out]:
        self.pins.hold(instance, message)
        return []

    def _leave(self, instance: Instance, message: Leave, frames: list[bytes]) -> list[Out]:
        self._drop(instance)
        del self.instances[instance.name]
        self.history.add("left", instance.name)
        return [(instance.connection, Left(message.epoch), ())]

    def _drop(self, instance: Instance) -> None:
        instance.state = "dead"
        self.placement.drop(instance)
        self._connections.pop(instance.connection, None)
        self.peers.drop(instance.name)
        self._syncs.drop(instance.name)
        self._awaited.discard(instance.name)

    # ------------------------------------------------------------ time

    def tick(self) -> list[Out]:
        """To be called a few times a heartbeat, after all that has arrived was heard."""
        now, beat = self.clock(), self.config.heartbeat
        if now - self._ticked > beat:  # we stood still ourselves: nobody could be heard
            for instance in self.instances.values():
                instance.heard += now - self._ticked
        self._ticked = now
        out: list[Out] = []
        fresh = now - self.config.suspect_after_beats * beat
        for instance in list(self.instances.values()):
            # Nearly all of them: a tick between two locates looks at every one.
            if instance.heard <= fresh or instance.probes or instance.state == "suspect":
                out += self._age(instance, now)
        self._strangers = {c: told for c, told in self._strangers.items() if now - told < beat}
        self._warm(now)
        self.placement.hot.tick()
        self._syncs.expire()
        self.jobs.tick(self.instances)
        self.pins.tick(self.instances)
        return out + self._start_syncs()

    def _age(self, instance: Instance, now: float) -> list[Out]:
        beat, silence = self.config.heartbeat, now - instance.heard
        if instance.state == "dead":
            if silence > DEAD_KEPT:
                del self.instances[instance.name]
            return []
        probed = instance.probes and now - instance.probed >= beat
        if silence >= self.config.dead_after_beats * beat or (probed and instance.probes >= PROBES):
            self._drop(instance)
            self.history.add("dead", instance.name, f"not heard for {silence:.1f} s")
            self._deserted = not self._connections
        elif instance.state == "live" and silence >= self.config.suspect_after_beats * beat:
            instance.state = "suspect"
            self.history.add("suspect", instance.name, f"not heard for {silence:.1f} s")
            self.placement.unfit.add(instance.number)
        return self._probe(instance) if probed and instance.state != "dead" else []

    def _warm(self, now: float) -> None:
        age = now - self._warms_since
        if age >= self.config.warming_most or (
            age >= self.config.warming_least and not self._awaited
        ):
            self._warming = False

    def touched(self) -> list[Out]:
        """What was handed out lately, to its holders; at most every `touched_interval`."""
        now = self.clock()
        if not self.placement.pending or now - self._told < self.config.touched_interval:
            return []
        self._told = now
        told = self.placement.touched()
        return [(holder.connection, message, arrays) for holder, message, arrays in told]

    # ------------------------------------------------------------ questions

    def locate(self, message: Locate, frames: list[bytes]) -> tuple[Message, Arrays]:
        """`Located` and its frames, or `Refused`."""
        wire.counts(frames, KEY)
        if message.cluster != self.config.cluster:
            text = f"cluster {message.cluster!r}: this controller serves {self.config.cluster!r}"
            return Refused("cluster", text, "cluster", message.request), ()
        asker = self.instances.get(message.instance)
        if asker is None or asker.number < 0 or asker.epoch != message.epoch:
            text = f"instance {message.instance!r} has not registered under this epoch"
            return Refused("not_registered", text, "instance", message.request), ()
        named = (self.instances.get(name) for name in message.avoid)
        avoid = [other for other in named if other is not None and other.number >= 0]
        answer, places, counters = self.placement.locate(asker, frames[0], avoid, message.sparse)
        answer.request, answer.epoch = message.request, self.epoch
        return answer, (places, counters)

    def _peer(self, message: Peer) -> Message:
        found = self.instances.get(message.instance)
        if found is None or found.number < 0:
            text = f"instance {message.instance!r} is not known here"
            return Refused("unknown_instance", text, "instance", message.request)
        registration = found.registration
        return PeerInfo(
            message.request,
            found.name,
            found.epoch,
            registration.data_version,
            registration.ranks,
            registration.serving_url,
        )


def unsupported(message: AnyMessage) -> Unsupported:
    tag = str(type(message).__struct_config__.tag)
    return Unsupported(tag, getattr(message, "request", 0))
