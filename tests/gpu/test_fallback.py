"""Where the package's fatbin is missing or not for this driver, CuPy compiles the kernels on a real
card, and they copy like the others."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotStatus
from lmkv.worker import kernels

from tests.gpu.cards import PATHS, Card, OnReal, RealCards, kernels_folder
from tests.kernels.bodies import World
from tests.kernels.cases import kv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is missing"),
]


def assert_copies(cards: RealCards, gpu: _native.Gpu) -> None:
    """`gpu` has the kernels that are asked."""
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    card = Card(OnReal(cards.cuda, gpu, b""), world)
    card.know_slots()
    source, target = world.some_blocks(), world.some_blocks()
    for path in PATHS:
        payloads = [world.payload(blocks) for blocks in source]
        card.gather(source, path)
        expected = world.expect_scatter(target, payloads)
        assert card.scatter(target, path) == [SlotStatus.GOOD] * 2
        assert np.array_equal(card.memory(), expected)
    card.close()


def test_without_a_fatbin(real_cards: RealCards, tmp_path: Path) -> None:
    for source in kernels_folder().iterdir():
        if source.suffix in (".h", ".cu"):
            shutil.copy(source, tmp_path)
    assert_copies(real_cards, kernels.open_gpu(0, tmp_path))
    (tmp_path / kernels.FATBIN).write_bytes(b"of a compiler that this driver does not know")
    assert_copies(real_cards, kernels.open_gpu(0, tmp_path))
