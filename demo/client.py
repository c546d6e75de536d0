"""Asks a server as a user would: streamed chat, timed at the first token; reads `/metrics`."""

from __future__ import annotations

import http.client
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

MODEL = "smollm2"
TIMEOUT_S = 180.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_CAUSE = re.compile(r'cause="([^"]*)"')


@dataclass(frozen=True)
class Answer:
    text: str
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Metrics:
    """What a server counted: totals, and tokens by cause. Differences are a question's share."""

    totals: dict[str, float] = field(default_factory=dict)
    causes: dict[str, float] = field(default_factory=dict)

    def __sub__(self, before: Metrics) -> Metrics:
        totals = {name: value - before.totals.get(name, 0) for name, value in self.totals.items()}
        causes = {name: value - before.causes.get(name, 0) for name, value in self.causes.items()}
        return Metrics(totals, {name: value for name, value in causes.items() if value})

    def __add__(self, other: Metrics) -> Metrics:
        def add(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
            return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}

        return Metrics(add(self.totals, other.totals), add(self.causes, other.causes))

    def total(self, name: str) -> float:
        return self.totals.get(name, 0)


def parse_metrics(text: str) -> Metrics:
    metrics = Metrics()
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if not found:
            continue
        name, value = found["name"], float(found["value"])
        metrics.totals[name] = metrics.totals.get(name, 0) + value
        cause = _CAUSE.search(found["labels"] or "")
        if cause and name in ("vllm:lmkv_hit_tokens_total", "vllm:lmkv_miss_tokens_total"):
            metrics.causes[cause[1]] = metrics.causes.get(cause[1], 0) + value
    return metrics


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def _ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.read()[:500]!r}")
        return response

    def healthy(self) -> bool:
        try:
            self._ask("GET", "/health").read()
        except (OSError, http.client.HTTPException, RuntimeError):
            return False
        return True

    def metrics(self) -> Metrics:
        return parse_metrics(self._ask("GET", "/metrics").read().decode())

    def chat(
        self, messages: list[dict[str, str]], max_tokens: int = 48, transfer: str | None = None
    ) -> Answer:
        """One greedy answer; `transfer` asks lmkv for one way (`nixl`, `mapped`)."""
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if transfer:
            body["kv_transfer_params"] = {"lmkv": {"transfer": transfer}}
        begin = time.perf_counter()
        first = None
        words: list[str] = []
        usage: dict[str, Any] = {}
        for line in self._ask("POST", "/v1/chat/completions", body):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                content = choice["delta"].get("content")
                if content:
                    first = first or time.perf_counter()
                    words.append(content)
        if first is None:
            raise RuntimeError("the answer is empty")
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or 0
        return Answer("".join(words), first - begin, usage["prompt_tokens"], cached)
