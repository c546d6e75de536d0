"""Which way slots cross the link: measured by a clock that is moved by hand, and kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmkv import _native
from lmkv.core.clock import ManualClock
from lmkv.worker import gpu_paths
from lmkv.worker.copiers import Slot

CHUNKS = 3  # that vLLM's blocks have room for
SLOT = _native.SlotLayout(2, 4096, 1, 7)
DIRECT, STAGED = {"direct": 1.0, "staged": 2.0}, {"direct": 2.0, "staged": 1.0}


def group(layout: str = "tokens", chunks: int = CHUNKS) -> Any:
    return SimpleNamespace(
        layout=layout,
        slot=SLOT,
        pages=SimpleNamespace(blocks=4 * chunks),  # kernel blocks
        kernel_blocks=2,
        blocks_per_chunk=2,
    )


class Card:
    """Copiers whose gathers and scatters take these seconds on each path."""

    def __init__(
        self,
        stores: dict[str, float] = DIRECT,
        loads: dict[str, float] = DIRECT,
        name: str = "Card",
        bus_id: str = "0000:01:00.0",
        driver_version: int = 13000,
        multiprocessors: int = 8,
    ) -> None:
        self.registered: list[tuple[int, int]] = []
        self.unregistered: list[int] = []
        self.gpu: Any = SimpleNamespace(
            name=name,
            bus_id=bus_id,
            driver_version=driver_version,
            register_host=lambda *segment: self.registered.append(segment),
            unregister_host=self.unregistered.append,
        )
        self.multiprocessors = multiprocessors
        self.stage_stores = self.stage_loads = True
        self.clock = ManualClock()
        self.seconds = {"store": stores, "load": loads}
        self.copies: list[tuple[str, str]] = []
        self.blocks: list[list[int]] = []
        self.status: int = _native.SlotStatus.GOOD

    def mark(self) -> str:
        return "mark"

    def gather(self, group: int, slots: Sequence[Slot], after: object) -> None:
        assert self.stage_stores == self.stage_loads and after == "mark"
        self.blocks = [slot.blocks for slot in slots]
        self._copy("store")

    def scatter(self, group: int, slots: Sequence[Slot], part: None, after: object) -> list[int]:
        assert [slot.blocks for slot in slots] == self.blocks and after == "mark"
        self._copy("load")
        return [self.status] * len(slots)

    def _copy(self, kind: str) -> None:
        path = "staged" if self.stage_stores else "direct"
        first = (kind, path) not in self.copies
        self.copies.append((kind, path))
        self.clock.advance(100 if first else self.seconds[kind][path])  # it makes room

    def choose(self, folder: Path, path: str = "auto", pages: Any = None) -> Card:
        gpu_paths.choose(self, pages or [group()], path, folder, self.clock)  # type: ignore[arg-type]
        return self


@pytest.mark.parametrize(("stores", "stage_stores"), [(DIRECT, False), (STAGED, True)])
@pytest.mark.parametrize(("loads", "stage_loads"), [(DIRECT, False), (STAGED, True)])
def test_the_faster_path_is_chosen_each_way(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stores: dict[str, float],
    stage_stores: bool,
    loads: dict[str, float],
    stage_loads: bool,
) -> None:
    caplog.set_level(logging.INFO, "lmkv.worker")
    card = Card(stores, loads).choose(tmp_path)
    assert (card.stage_stores, card.stage_loads) == (stage_stores, stage_loads)
    assert len(card.copies) == 2 * 2 * (1 + gpu_paths.REPEATS)
    assert card.blocks == [[0, 1], [2, 3], [4, 5]]
    assert [address for address, _ in card.registered] == card.unregistered
    (line,) = caplog.messages
    names = ["staged" if staged else "direct" for staged in (stage_stores, stage_loads)]
    assert line.startswith(f"lmkv: Card: stores {names[0]} (direct 0.0 GB/s, staged ")
    assert f"; loads {names[1]} (" in line


def test_few_of_many_blocks_are_measured_and_the_largest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_paths, "MEASURED_BYTES", 5 * SLOT.used_bytes // 2)
    small = group(chunks=100)
    small.slot = _native.SlotLayout(1, 64, 1, 7)
    card = Card().choose(tmp_path, pages=[small, group(chunks=10)])
    assert card.registered[0][1] < gpu_paths.MEASURED_BYTES
    assert card.blocks == [[16, 17], [18, 19]]  # the last ones: block 0 is vLLM's own


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    Card(STAGED, DIRECT).choose(tmp_path)
    again = Card(DIRECT, STAGED).choose(tmp_path)
    assert again.copies == []
    assert (again.stage_stores, again.stage_loads) == (True, False)
    assert [file.name for file in tmp_path.iterdir()] == [gpu_paths.FILE]


@pytest.mark.parametrize(
    "other",
    [
        {"name": "Other"},
        {"bus_id": "0000:02:00.0"},
        {"driver_version": 13010},
        {"multiprocessors": 16},
    ],
    ids=str,
)
def test_another_card_driver_or_setting_is_measured_too(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    Card(DIRECT).choose(tmp_path)
    assert Card(STAGED, **other).choose(tmp_path).stage_stores
    for card, staged in ((Card(), False), (Card(**other), True)):
        assert card.choose(tmp_path).copies == []
        assert card.stage_stores == staged


def test_another_layout_is_measured_too(tmp_path: Path) -> None:
    Card(DIRECT).choose(tmp_path)
    assert Card(STAGED).choose(tmp_path, pages=[group("tokens of fp8")]).stage_stores
    assert not Card(STAGED).choose(tmp_path).stage_stores


def changed(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A file whose entry is changed."""

    def make(text: bytes) -> bytes:
        whole = json.loads(text)
        for name in whole:
            entry = whole[name] = {key: dict(rates) for key, rates in whole[name].items()}
            change(entry)
        return json.dumps(whole).encode()

    return make


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "torn": lambda text: text[:-5],
    "binary": lambda text: b"\xff\xfe" * 20,
    "a list": lambda text: b"[1, 2]",
    "a number": lambda text: b'{"0011223344556677": 5}',
    "words": changed(lambda entry: entry["loads"].update(direct="fast")),
    "one path": changed(lambda entry: entry["stores"].pop("staged")),
    "no path": changed(lambda entry: entry["stores"].clear()),
    "no loads": changed(lambda entry: entry.pop("loads")),
    "zero": changed(lambda entry: entry["loads"].update(staged=0)),
    "negative": changed(lambda entry: entry["stores"].update(direct=-1.0)),
    "null": changed(lambda entry: entry["stores"].update(direct=None)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_torn_or_foreign_file_is_measured_again(tmp_path: Path, kind: str) -> None:
    file = tmp_path / gpu_paths.FILE
    Card(DIRECT).choose(tmp_path)
    file.write_bytes(FOREIGN[kind](file.read_bytes()))
    assert Card(STAGED).choose(tmp_path).stage_stores
    assert Card().choose(tmp_path).copies == []


def test_a_folder_that_cannot_be_written_costs_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lmkv.worker")
    folder = tmp_path / "a file"
    folder.write_bytes(b"")
    assert not Card(DIRECT).choose(folder).stage_stores
    (line,) = [text for text in caplog.messages if "is not written" in text]
    assert line.startswith(f"lmkv: {folder / gpu_paths.FILE} is not written: ")


@pytest.mark.parametrize("path", ["direct", "staged"])
def test_a_path_that_is_set_is_not_measured(tmp_path: Path, path: str) -> None:
    card = Card().choose(tmp_path, path)
    assert (card.stage_stores, card.stage_loads) == (path == "staged",) * 2
    assert (card.copies, card.registered, [*tmp_path.iterdir()]) == ([], [], [])


def test_fewer_blocks_than_a_chunk_has_are_not_measured(tmp_path: Path) -> None:
    card = Card().choose(tmp_path, pages=[group(chunks=0)])
    assert (card.copies, [*tmp_path.iterdir()]) == ([], [])


def test_a_card_whose_slots_are_not_good_is_refused(tmp_path: Path) -> None:
    card = Card()
    card.status = _native.SlotStatus.DIGEST
    with pytest.raises(RuntimeError, match="slots that Card has made are not good"):
        card.choose(tmp_path)
    assert [address for address, _ in card.registered] == card.unregistered
    assert not [*tmp_path.iterdir()]
