"""Readers that die in the middle of a READ over TCP: the holder goes on serving (`make faults`
kills a hundred)."""

from __future__ import annotations

from pathlib import Path

from tests.faults.readers import lab
from tests.vllm.engine import Zygote

READERS = 10
GENEROUS_S = 15.0  # the goal is half a second; a busy machine decides no test


def test_a_holder_survives_readers_killed_in_mid_read(
    zygote: Zygote, llama: Path, tmp_path: Path
) -> None:
    with lab(zygote, llama, tmp_path) as readers:
        outcome = readers.run(READERS)
    print(outcome)
    assert len(outcome.served_s) == READERS
    assert outcome.wrong == 0
    assert outcome.left == {}
    assert outcome.restarts >= outcome.killed == 1
    assert max(outcome.served_s) < GENEROUS_S
