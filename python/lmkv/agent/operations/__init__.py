"""What jobs do, by name: an operation is a generator of short steps (agent/jobs.py)."""

from __future__ import annotations

from lmkv.agent.jobs import Operation
from lmkv.agent.operations import clear

OPERATIONS: dict[str, Operation] = {"clear": Operation(clear.clear)}
