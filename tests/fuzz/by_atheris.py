"""A target, driven by atheris, which looks at what each input reaches:
`python -m tests.fuzz.by_atheris TARGET SECONDS`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

MOST_MIB = 512  # of memory, at any time; a target takes 60


def main(name: str, seconds: str) -> None:
    """In a process of its own: the peak of memory that libFuzzer bounds outlives exec, so that it
    begins as that of whoever started this one; a fork's is its own."""
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    fuzz(name, seconds)


def fuzz(name: str, seconds: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["lmkv.core", "lmkv.controller", "yaml"]):
        from tests.fuzz.targets import TARGETS, seeds

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="lmkv-corpus-") as corpus:
        for number, data in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(data)
        words = [sys.argv[0], corpus, f"-max_total_time={seconds}", "-max_len=4096"]
        words += ["-timeout=60", f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix={corpus}/"]
        atheris.Setup(words, target)
        atheris.Fuzz()  # exits


if __name__ == "__main__":
    main(*sys.argv[1:])
