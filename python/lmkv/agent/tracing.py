"""Spans of a request, joined to the trace that its client began: begin(headers) -> a Trace.

`lmkv.lookup` (from its arrival until what can be loaded is known), `lmkv.locate`, `lmkv.pull` (one
for each peer and run of chunks) and `lmkv.load` are children of the span that `trace_headers`
names, beside vLLM's own. Each is made when it has ended and put in a queue, which a thread of
OpenTelemetry's empties; a full queue drops. Off, which is the default, every call is one of
`Untraced`'s, and OpenTelemetry is not imported. A request without a sampled trace is untraced too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lmkv.core.metrics import PULL_RESULTS

if TYPE_CHECKING:
    from lmkv.agent.pulls import Job
    from lmkv.agent.request import RequestState

log = logging.getLogger("lmkv.agent")

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
DISABLED = "OTEL_SDK_DISABLED"
CLOSE_DEADLINE = 0.5  # seconds for the last spans
INSTALL = "pip install 'lmkv[otel]'"


class Untraced:
    """Does nothing."""

    def locating(self) -> None: ...

    def located(self, state: RequestState, cause: str) -> None: ...

    def matched(self) -> None: ...

    def pulled(self, job: Job) -> None: ...

    def loading(self) -> None: ...

    def loaded(self, state: RequestState, chunks: int, good: int) -> None: ...

    def ended(self, state: RequestState) -> None: ...


UNTRACED = Untraced()


class Off:
    """Traces no request."""

    def begin(self, request: str, headers: Mapping[str, str] | None) -> Untraced:
        return UNTRACED

    def close(self) -> None: ...


OFF = Off()


def tracer(
    endpoint: str | None,
    instance: str,
    clock: Callable[[], float] = time.monotonic,
    environ: Mapping[str, str] = os.environ,
) -> Off:
    """To vLLM's `--otlp-traces-endpoint`, else what OpenTelemetry's variable says; off without."""
    endpoint = endpoint or environ.get(ENDPOINT, "")
    if not endpoint or environ.get(DISABLED, "").lower() == "true":
        return OFF
    try:
        return Tracer(endpoint, environ.get(PROTOCOL, "grpc"), instance, clock)
    except ImportError as error:
        log.warning("lmkv: no spans, %s is not installed: %s", error.name, INSTALL)
    except Exception as error:
        log.warning("lmkv: no spans, %s: %s", endpoint, error)
    return OFF


class Tracer(Off):
    """A provider of our own: vLLM's may not be there, and has another resource."""

    def __init__(
        self, endpoint: str, protocol: str, instance: str, clock: Callable[[], float]
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.instance.id": instance, "lmkv.instance": instance})
        self._clock = clock
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter(endpoint, protocol)))
        self._tracer = self._provider.get_tracer("lmkv")
        self._extract = TraceContextTextMapPropagator().extract

    def begin(self, request: str, headers: Mapping[str, str] | None) -> Untraced:
        if not headers:
            return UNTRACED
        from opentelemetry.trace import get_current_span

        context = self._extract(headers)
        if not get_current_span(context).get_span_context().trace_flags.sampled:
            return UNTRACED
        return Trace(self._tracer, context, self._clock, request)

    def flush(self, seconds: float) -> bool:
        """For tests."""
        return bool(self._provider.force_flush(int(seconds * 1000)))

    def close(self) -> None:
        """A collector that does not answer costs the last spans, and no more than the deadline."""
        ending = threading.Thread(target=self._provider.shutdown, name="lmkv-spans", daemon=True)
        ending.start()
        ending.join(CLOSE_DEADLINE)


def exporter(endpoint: str, protocol: str) -> Any:
    """As vLLM makes its own. ValueError for a protocol that is none."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:"))
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpSpanExporter,
        )

        return HttpSpanExporter(endpoint=endpoint)
    raise ValueError(f"{PROTOCOL} = {protocol!r}: allowed is grpc or http/protobuf")


class Trace(Untraced):
    """Of one request. Times are the agent's clock, and become times of day here."""

    def __init__(self, tracer: Any, context: Any, clock: Callable[[], float], request: str) -> None:
        self._tracer = tracer
        self._context = context
        self._clock = clock
        self._request = request
        self._began = clock()
        self._epoch = time.time_ns() - round(self._began * 1e9)
        self._asked = self._matched = self._loading = self._began
        self._over = False

    def locating(self) -> None:
        self._asked = self._clock()

    def located(self, state: RequestState, cause: str) -> None:
        sources = [source for part in state.groups for source in part.sources.values()]
        more = {
            "lmkv.chunks": len(sources),
            "lmkv.peers": sorted({source.peer for source in sources}),
            "lmkv.cause": cause,
        }
        self._span("lmkv.locate", self._asked, more)

    def matched(self) -> None:
        self._matched = self._clock()

    def pulled(self, job: Job) -> None:
        more = {
            "lmkv.peer": job.peer,
            "lmkv.chunks": len(job.results),
            "lmkv.good_chunks": job.good,
            "lmkv.bytes": job.bytes,
            "lmkv.causes": sorted({PULL_RESULTS[result] for result in job.results}),
        }
        self._span("lmkv.pull", job.begin, more)

    def loading(self) -> None:
        self._loading = self._clock()

    def loaded(self, state: RequestState, chunks: int, good: int) -> None:
        more = {
            "lmkv.chunks": chunks,
            "lmkv.good_chunks": good,
            "lmkv.peers": sorted(state.brought),
        }
        self._span("lmkv.load", self._loading, more | _tokens("hit", state.hits))

    def ended(self, state: RequestState) -> None:
        """Its tokens have been accounted for; a session's once."""
        if self._over:
            return
        self._over = True
        more: dict[str, Any] = {
            "lmkv.prompt_tokens": state.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": sum(state.hits.values()),
            **_tokens("hit", state.hits),
            **_tokens("miss", state.misses),
        }
        more |= {f"lmkv.peer_tokens.{peer}": n for peer, n in state.brought.items()}
        more |= {"lmkv.differs": state.differs} if state.differs else {}
        more |= {"lmkv.opted_out": state.opted_out} if state.opted_out else {}
        self._span("lmkv.lookup", self._began, more, max(self._matched, self._began))

    def _span(
        self, name: str, began: float, more: Mapping[str, Any], ended: float | None = None
    ) -> None:
        """Never costs the request anything but time."""
        try:
            span = self._tracer.start_span(
                name,
                self._context,
                attributes={"gen_ai.request.id": self._request, **more},
                start_time=self._time(began),
            )
            span.end(self._time(self._clock() if ended is None else ended))
        except Exception:
            log.warning("lmkv: a span is lost", exc_info=True)

    def _time(self, moment: float) -> int:
        return self._epoch + round(moment * 1e9)


def _tokens(what: str, counts: Counter[str]) -> dict[str, int]:
    return {f"lmkv.{what}_tokens.{cause}": n for cause, n in counts.items() if n}
