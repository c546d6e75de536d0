"""One line on stderr for each thing that people should know."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress


def say(process: str, sentence: str, form: str = "text") -> None:
    """As `text`, or as `json`: an object with time (seconds since 1970), process and message. Where
    nobody reads stderr any more it goes nowhere: no process and no thread ends with its reader."""
    line = f"lmkv {process}: {sentence}"
    if form == "json":
        line = json.dumps({"time": time.time(), "process": process, "message": sentence})
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
