"""Traces: what is read, and one sentence for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lmkv._native import KeyHasher
from lmkv.sim.trace import TraceError, read, tokens

from tests import traces

GOOD = {"timestamp": 5, "input_length": 513, "output_length": 1, "hash_ids": [7, 8]}


def written(folder: Path, *lines: Any) -> str:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return str(path)


def test_requests_come_in_order_with_their_blocks(tmp_path: Path) -> None:
    later = {**GOOD, "timestamp": 1500, "hash_ids": [7, 1 << 40]}
    first, second = read(written(tmp_path, GOOD, "", later))
    assert (first.at, first.tokens, first.blocks) == (0.005, 513, (7, 8))
    assert (second.at, second.blocks) == (1.5, (7, 1 << 40))


def test_equal_blocks_are_equal_chunks_and_others_are_not(tmp_path: Path) -> None:
    def keys(*blocks: int) -> list[bytes]:
        line = {**GOOD, "input_length": 512 * len(blocks), "hash_ids": list(blocks)}
        made = tokens(read(written(tmp_path, line))[0])
        assert len(made) == 512 * len(blocks)
        chain = KeyHasher("model=x\n", ["kind=full\n"], 256).chain(b"")
        chain.extend(made)
        return [chain.keys(0, i, i + 1) for i in range(len(chain))]

    one, other = keys(7, 8, 9), keys(7, 8 + (1 << 32), 9)
    assert len(set(one)) == 6
    assert one[:2] == other[:2]
    assert not set(one[2:]) & set(other[2:])


def test_the_made_up_one_is_of_that_form(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    total = traces.write(path, 50)
    assert sum(asked.tokens for asked in read(str(path))) == total


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([GOOD, "{"], "line 2: it is no JSON"),
        (["[" * 100_000], "line 1: it is no JSON"),
        (["[]"], "line 1: it is no JSON object"),
        ([{"timestamp": 1}], "line 1: it has no input_length"),
        ([{**GOOD, "timestamp": -1}], "timestamp = -1: allowed is a whole number from 0 to"),
        ([{**GOOD, "input_length": 0}], "input_length = 0: allowed is a whole number from 1 to"),
        ([{**GOOD, "input_length": True}], "input_length = True: allowed is a whole number"),
        ([{**GOOD, "output_length": 10**400}], "output_length = 1000"),
        ([{**GOOD, "output_length": "9"}], "output_length = 9: allowed is a whole number"),
        ([{**GOOD, "hash_ids": [7, -8]}], "hash_ids: allowed is a list of whole numbers from 0"),
        ([{**GOOD, "hash_ids": 7}], "hash_ids: allowed is a list of whole numbers from 0"),
        ([{**GOOD, "hash_ids": [7]}], "hash_ids: there are 1, and input_length = 513 needs 2"),
        ([GOOD, {**GOOD, "timestamp": 4}], "line 2: timestamp = 4: allowed is 5, that of"),
        ([""], "it has no requests"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, lines: list[Any], sentence: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert path in str(caught.value)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="none: No such file"):
        read(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="Is a directory"):
        read(str(tmp_path))
