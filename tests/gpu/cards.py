"""A world's KV on a card: the fake driver's, or a real one in torch's hands. One contract, both.

    with cards.fresh() as device:         # FakeCards() or RealCards()
        card = Card(device, world)        # the world's KV is on the card, slots are the host's
        card.know_slots()
        card.gather(blocks, "direct")
        card.scatter(blocks, "staged")
        assert np.array_equal(card.memory(), expected)
        card.close()

`world.memory` is what the host knows of the KV; `card.memory()` looks at the card, and makes it so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lmkv import _native
from lmkv.worker import kernels

from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import RealCuda
from tests.kernels.bodies import World

ROOT = Path(__file__).resolve().parents[2]
FATBIN = b"\x50\xed\x55\xba" + bytes(60)  # one that the fake takes
PATHS = {"direct": False, "staged": True}


class OnFake:
    """The world's own memory plays the card's."""

    image = FATBIN

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.known: list[int] = []  # registered memory of the host

    def gpu(self) -> _native.Gpu:
        gpu = _native.Gpu(0, str(self.cuda.path))
        gpu.load(self.image)
        return gpu

    def put(self, world: World) -> list[int]:
        """Where its layers are on the card."""
        self.cuda.adopt(world.memory)
        return [layer.ctypes.data for layer in world.kv]

    def fetch(self, world: World) -> None: ...


class OnReal:
    """KV is a strided view of a tensor, as vLLM's is. `image`: the kernels, as this card takes
    them."""

    def __init__(self, cuda: RealCuda, gpu: _native.Gpu, image: bytes) -> None:
        self.cuda, self._gpu, self.image = cuda, gpu, image
        self.known: list[int] = []

    def gpu(self) -> _native.Gpu:
        return self._gpu

    def put(self, world: World) -> list[int]:
        import torch

        self.tensor = torch.from_numpy(world.memory).to("cuda:0")
        self.kv = self.tensor.as_strided(world.kv.shape, world.kv.strides, world.case.offset)
        torch.cuda.synchronize()
        return [layer.data_ptr() for layer in self.kv]

    def fetch(self, world: World) -> None:
        np.copyto(world.memory, self.tensor.cpu().numpy())


class FakeCards:
    @contextmanager
    def fresh(self, seed: int = 0) -> Iterator[OnFake]:
        """Nothing may be left on it."""
        with FakeCuda() as cuda:
            cuda.seed(seed)
            yield OnFake(cuda)


class RealCards:
    """GPU 0, with the package's kernels or those that CuPy compiles."""

    def __init__(self) -> None:
        import torch

        torch.zeros(1, device="cuda:0")  # its context is there, and this thread's
        self.cuda, self.gpu = RealCuda(), _native.Gpu(0)
        self.image = real_image(_native.Gpu(0))
        self.gpu.load(self.image)

    @contextmanager
    def fresh(self, seed: int = 0) -> Iterator[OnReal]:
        device = OnReal(self.cuda, self.gpu, self.image)
        try:
            yield device
        finally:
            for address in device.known:  # of a test that failed: the next one may get this memory
                self.gpu.unregister_host(address)


def real_image(gpu: _native.Gpu) -> bytes:
    """The kernels as this card takes them; it has them then."""
    folder = kernels_folder()
    try:
        gpu.load((folder / kernels.FATBIN).read_bytes())
    except (FileNotFoundError, RuntimeError) as error:
        gpu.load(kernels.compiled(gpu.capability, folder, str(error)))
    return gpu.image


def kernels_folder() -> Path:
    """The package's; the tree's sources where it is not installed."""
    return kernels.FOLDER if kernels.FOLDER.is_dir() else ROOT / "kernels"


class Card:
    """A world whose KV is on a card, and a GpuCopier between it and slots of the host's."""

    def __init__(
        self,
        device: OnFake | OnReal,
        world: World,
        kernel_blocks: int = 1,
        staging: int = 0,
    ) -> None:
        self.device, self.world, case = device, world, world.case
        self.gpu = device.gpu()
        self.copier = _native.GpuCopier(
            self.gpu,
            world.layout,
            pages(world, device.put(world)),
            case.per_chunk // kernel_blocks,
            kernel_blocks,
        )
        size = staging or 8 * (world.used + 4096)
        self.stores = _native.GpuChannel(self.gpu, urgent=False, staging_bytes=size)
        self.loads = _native.GpuChannel(self.gpu, urgent=True, staging_bytes=size)

    def know_slots(self) -> None:
        for slot in self.world.slots:
            self.know(slot.ctypes.data, slot.nbytes)

    def know(self, address: int, size: int, readonly: bool = False) -> None:
        self.gpu.register_host(address, size, readonly)
        self.device.known.append(address)

    def chunks(
        self, blocks: Sequence[Sequence[int]], slots: Sequence[int] = ()
    ) -> list[tuple[int, bytes, int, list[int]]]:
        """In the world's slots, or at these addresses."""
        world = self.world
        at = slots or [slot.ctypes.data for slot in world.slots]
        return [
            (slot, world.keys[n], world.generations[n], list(of_chunk))
            for n, (slot, of_chunk) in enumerate(zip(at, blocks))
        ]

    def gather(self, blocks: Sequence[Sequence[int]], path: str, **more: Any) -> None:
        self.copier.gather(self.stores, self.chunks(blocks), staged=PATHS[path], **more)

    def scatter(self, blocks: Sequence[Sequence[int]], path: str, **more: Any) -> list[int]:
        return self.copier.scatter(self.loads, self.chunks(blocks), staged=PATHS[path], **more)

    def memory(self) -> np.ndarray:
        self.device.fetch(self.world)
        return self.world.memory

    def close(self) -> None:
        for address in self.device.known:
            self.gpu.unregister_host(address)
        self.device.known.clear()


def pages(world: World, layers: Sequence[int]) -> _native.Pages:
    """With the layers at these addresses."""
    case, strides = world.case, world.strides
    return _native.Pages(
        list(layers),
        *(case.blocks, case.heads, case.tokens, case.run),
        *(strides[axis] for axis in "bht"),
        *(case.planes, strides["p"]),
    )
