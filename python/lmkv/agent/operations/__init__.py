"""What jobs do, by name: an operation is a generator of short steps (agent/jobs.py)."""

from __future__ import annotations

from lmkv.agent.jobs import BYTES, Operation
from lmkv.agent.operations import clear, compress, copy, pin

OPERATIONS: dict[str, Operation] = {
    "pin": Operation(pin.pin, check=pin.needs_an_end),
    "unpin": Operation(pin.unpin),
    "clear": Operation(clear.clear),
    "compress": Operation(compress.compress, BYTES),
    "decompress": Operation(compress.decompress, BYTES),
    "copy": Operation(copy.copy, BYTES, copy.needs_a_source),
    "move": Operation(copy.move, BYTES, copy.needs_a_source),
}
