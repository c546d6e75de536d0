"""lmkv's native part: the manual.

Bulk arrays are `bytes` as they travel: keys 16 bytes each, places 8 (`csrc/slots/place.h`),
counters and results as the wire has them. Calls release the interpreter lock where they copy or
wait. ValueError: a caller's mistake, with the value. RuntimeError: a call of the system failed.
A test holds this file against the built module.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from typing_extensions import Buffer

_GpuChunk: TypeAlias = (
    tuple[int, bytes, int, Sequence[int]] | tuple[int, bytes, int, Sequence[int], bool]
)

# ---------------------------------------------------------------- keys (csrc/keys)

def isa() -> str:
    """The instruction set in use: `scalar`, `avx2` or `avx512`; `LMKV_ISA` forces one at import.
    A part without code for the last one takes the best below it."""

def isas() -> list[str]:
    """The instruction sets that this build and processor have, `scalar` first."""

def set_isa(name: str) -> None:
    """For tests and benches. Raises ValueError for one that is not in `isas()`."""

def blake3(data: Buffer, context: str | None = None) -> bytes:
    """32 bytes; with a context, BLAKE3's derive_key mode."""

class KeyHasher:
    """Keys of one namespace (DESIGN.md 4). `group_specs` are canonical texts, one per cache group."""

    def __init__(self, namespace: str, group_specs: Sequence[str], chunk_tokens: int) -> None: ...
    def chain(self, extra: bytes = b"") -> KeyChain:
        """A request's chain; `extra` are the items of extra_0 common to the request (salt, LoRA).
        ValueError if they are torn."""
    @property
    def chunk_tokens(self) -> int: ...
    @property
    def groups(self) -> int: ...

class KeyChain:
    """Keys of one request, grown as tokens arrive. Not thread-safe."""

    def extend(
        self,
        tokens: Sequence[int] | Buffer,
        start: int = 0,
        extras: Mapping[int, bytes] | None = None,
    ) -> int:
        """Take `tokens` (fast: a list, or a buffer of u32; any other sequence of ints works, `bytes`
        is refused), whose first element is the prompt's token number `start`; tokens already taken
        are skipped, a gap raises ValueError, as does a token outside u32: then none is taken.
        `extras` gives the items of a chunk by its number; they are remembered until the chunk is
        whole, and replace what was given for it before; for chunk 0 they are its own items and are
        merged with the chain's. Items are sorted here. Returns the number of whole chunks."""
    def truncate(self, tokens: int) -> None:
        """Forget all beyond the first `tokens` tokens (a session's input was cut). Tokens of whole
        chunks are not kept: where the cut is inside one, the chain goes back to that chunk's start,
        and `tokens` then says from where to extend again."""
    @property
    def tokens(self) -> int: ...
    def __len__(self) -> int:
        """Whole chunks."""
    def keys(self, group: int = 0, first: int = 0, last: int | None = None) -> bytes:
        """Keys of chunks [first, last) in a group."""

# ---------------------------------------------------------------- slots (csrc/slots, kernels/)

def lmx64(data: Buffer, segment: int) -> int:
    """The payload digest of SLOT_FORMAT; length a multiple of 16, segment < 2^24."""

class SlotLayout:
    """Sizes of one slot (docs/slots.md). `page_format` is 1 (tokens) or 2 (the engine's blocks)."""

    def __init__(
        self, segments: int, segment_bytes: int, page_format: int, fingerprint: int
    ) -> None: ...
    segments: int
    segment_bytes: int
    page_format: int
    fingerprint: int
    payload_offset: int
    payload_bytes: int
    used_bytes: int  # to the payload's end
    granule_bytes: int  # 1/16 of a full slot, rounded up to 4096
    slot_bytes: int  # 16 granules

class SlotPart:
    """Some heads of a peer's slots and where they lie in ours: in each of `layers` layers, `heads`
    from the peer's `their_first` on are ours from `our_first` on, both counted in the rank.
    ValueError for heads that one of the slots does not have."""

    def __init__(
        self,
        ours: SlotLayout,
        theirs: SlotLayout,
        layers: int,
        their_first: int,
        our_first: int,
        heads: int,
    ) -> None: ...
    @property
    def theirs(self) -> SlotLayout: ...

class SlotStatus:
    """What a reader found; the numbers are `messages.PullResult`'s."""

    GOOD: int
    GONE: int
    DIGEST: int
    INCOMPATIBLE: int

def write_slot(
    address: int, layout: SlotLayout, key: bytes, generation: int, payload: Buffer
) -> None:
    """Seal a slot at `address` from a payload in slot order: for tests and golden vectors."""

def check_slot(address: int, layout: SlotLayout, key: bytes, generation: int, room: int = 0) -> int:
    """A reader's whole check (header, table, segments); a SlotStatus. `room` is the slot's, in
    bytes: a compressed one has less than a full one, which 0 stands for. Nothing is decoded."""

def adopt_slot(
    address: int, layout: SlotLayout, key: bytes, theirs: int, ours: int, room: int = 0
) -> int:
    """A puller's step after its READ: check as a reader of generation `theirs`, then seal the header
    with generation `ours`; a SlotStatus. The slot is cleared unless it is GOOD."""

def load_zstd(path: str) -> None:
    """The library that compressed slots need, once for the process. RuntimeError: it does not load,
    or lacks a function. Without it compressed slots are INCOMPATIBLE."""

def zstd_version() -> str:
    """ "" while none is loaded."""

def compress_slot(
    address: int, layout: SlotLayout, key: bytes, generation: int, codec: int
) -> tuple[int, bytes]:
    """(SlotStatus, all of the compressed slot but its header, b"" unless GOOD). Codecs 1, 2, 3 are
    for words of 1, 2, 4 bytes. INCOMPATIBLE: it is compressed already. RuntimeError without zstd."""

def place_compressed(
    address: int,
    room: int,
    layout: SlotLayout,
    key: bytes,
    generation: int,
    codec: int,
    image: bytes,
) -> None:
    """Write and seal what compress_slot() made. ValueError when it does not fit into `room`."""

def expand_slot(
    address: int, room: int, layout: SlotLayout, key: bytes, theirs: int, to: int, ours: int
) -> int:
    """A compressed slot (or a full one) as a full slot at `to`, sealed with generation `ours`; a
    SlotStatus. `to` is cleared unless it is GOOD."""

def clear_slot(address: int) -> None:
    """Word 0 becomes 0: no reader accepts the slot. First step of reuse, before a READ lands."""

# ---------------------------------------------------------------- memory (csrc/memory)

class Pool:
    """A worker's pool: one reserved range at a fixed address, memfd segments mapped into it.

    A slot is 16 granules: room for a chunk of any of the rank's cache groups. `address` 0 takes a
    random one above 2^44. `segment_slots` slots a segment, the last may be shorter. Segments are
    mode 0600 and sealed SHRINK, GROW, SEAL. Closing unmaps all.
    """

    def __init__(
        self, granule_bytes: int, slots: int, segment_slots: int, address: int = 0
    ) -> None: ...
    def add_segment(self, populate: bool = True) -> int:
        """Create, seal, map and touch the next segment; returns its number. Drops the lock."""
    def segment_fd(self, segment: int, readonly: bool = False) -> int:
        """A new descriptor (the caller closes it); `readonly` is what a peer may have."""
    @property
    def address(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def segment_slots(self) -> int: ...
    @property
    def segments(self) -> int:
        """Usable now."""
    @property
    def granule_bytes(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def tier(self) -> int:
        """Of its places: 0 host, 1 a GPU's memory."""
    def segment(self, n: int) -> tuple[int, int]:
        """(address, bytes) of a usable segment."""
    def slot_address(self, place: bytes, room: int = 0) -> int:
        """ValueError for a place that is not usable, or has not `room` bytes."""
    def clear(self, place: bytes) -> None:
        """Before anything is written there: no reader accepts an older slot that has granules in
        this place, wherever it begins. ValueError: as of slot_address(), or it is read-only."""
    def close(self) -> None: ...

class PoolMap:
    """Another process's segments mapped here: a mover's own pool (`writable`, at `address`), or a
    peer's (read-only, anywhere). Seals and sizes are checked first: RuntimeError names what is
    missing, and nothing is mapped."""

    def __init__(
        self,
        granule_bytes: int,
        slots: int,
        segment_slots: int,
        address: int = 0,
        writable: bool = False,
    ) -> None: ...
    def add_segment(self, fd: int) -> int:
        """Maps and keeps; the descriptor stays the caller's."""
    def fault_in(self, segment: int) -> None:
        """Takes the segment's page faults now, so that the first READ into it does not (it is three
        times slower then). It may run beside everything else, and ends when the pool is closed."""
    @property
    def address(self) -> int: ...
    @property
    def tier(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def segment_slots(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def granule_bytes(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    def segment(self, n: int) -> tuple[int, int]: ...
    def slot_address(self, place: bytes, room: int = 0) -> int: ...
    def clear(self, place: bytes) -> None: ...
    def close(self) -> None: ...

# ---------------------------------------------------------------- copies (csrc/copy)

class Pages:
    """How vLLM's paged KV lies: for layer l, plane p (K, V, or one opaque plane), block b, head h,
    token t, the run of `run_bytes` bytes is at
    `layers[l] + p*plane_stride + b*block_stride + h*head_stride + t*token_stride`.

    A slot's segment (l, h) is, for each plane, for each block of the chunk, for each of `tokens`
    runs, those bytes; adjacent runs are merged. Opaque pages have planes 1, tokens 1 and whole
    (block, head) pages as runs. `tokens` is runs per block. Addresses, strides and runs are
    multiples of 4; of 16 for the host's Copier.
    """

    def __init__(
        self,
        layers: Sequence[int],
        blocks: int,
        heads: int,
        tokens: int,
        run_bytes: int,
        block_stride: int,
        head_stride: int,
        token_stride: int = 0,
        planes: int = 1,
        plane_stride: int = 0,
    ) -> None: ...
    blocks: int
    def segment_bytes(self, blocks_per_chunk: int) -> int: ...

SKIPPED_BLOCK: int  # see Copier.scatter

class Copier:
    """Host gather and scatter, digests in the same pass. Thread-safe; drops the lock."""

    def __init__(self, layout: SlotLayout, pages: Pages, blocks_per_chunk: int) -> None: ...
    def gather(self, slot_address: int, key: bytes, generation: int, blocks: Sequence[int]) -> None:
        """vLLM's blocks to a reserved slot: payload, table, header; magic last."""
    def audit(self, slot_address: int, blocks: Sequence[int]) -> bool:
        """Digest the blocks again and compare with the slot's table."""
    def scatter(
        self,
        slot_address: int,
        key: bytes,
        generation: int,
        blocks: Sequence[int],
        room: int = 0,
    ) -> int:
        """A slot (own or a mapped peer's, read-only) to vLLM's blocks, checked as SLOT_FORMAT's
        reader; a SlotStatus. The blocks hold rubbish unless it is GOOD. A block SKIPPED_BLOCK is
        left alone: its part of the slot is only checked. `room` as in check_slot(); a compressed
        slot is decoded on the way."""
    def scatter_part(
        self,
        slot_address: int,
        part: SlotPart,
        key: bytes,
        generation: int,
        blocks: Sequence[int],
        room: int = 0,
    ) -> int:
        """The same for those heads of a peer's slot that are ours too; nothing else of its payload
        is read or verified. ValueError when the part is of another layout's slots."""

def copy_runs(to: Buffer, from_: Buffer, bytes: int) -> None:
    """For benches: one memcpy of `bytes` bytes for each pair of addresses (u64 arrays)."""

# ---------------------------------------------------------------- CUDA (csrc/cuda)

class GpuMark:
    """A place in the engine's stream, which copies may come after."""

    def done(self) -> bool: ...

class Gpu:
    """One GPU by its number in this process, in torch's own context. RuntimeError: there is no
    driver, no such GPU, it is too old, or a call of the driver failed (with the call's name, the
    driver's sentence and its error's name). `library` is the driver's."""

    def __init__(self, ordinal: int, library: str = "libcuda.so.1") -> None: ...
    def load(self, image: bytes) -> None:
        """The kernels (docs/kernels.md) as fatbin, cubin or PTX; once, before a GpuCopier is made."""
    @property
    def image(self) -> bytes:
        """What was loaded; b"": nothing."""
    @property
    def ordinal(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def bus_id(self) -> str: ...
    @property
    def capability(self) -> int:
        """90: sm_90."""
    @property
    def multiprocessors(self) -> int: ...
    @property
    def driver_version(self) -> int:
        """The CUDA version that the driver is for: 13000 is 13.0."""
    def memory(self) -> tuple[int, int]:
        """Free bytes of its memory, and all."""
    def mark(self, stream: int) -> GpuMark:
        """Behind all that has been put into this stream (a CUstream's address) so far."""
    def register_host(self, address: int, bytes: int, readonly: bool = False) -> None:
        """Pins memory, so that kernels reach it and copies go at the link's speed. `readonly` for a
        mapping that is; not every system takes those."""
    def unregister_host(self, address: int) -> None:
        """Before it is unmapped."""

class GpuFence:
    """Where so many gathers of one channel have read their blocks: the engine's stream is made to
    come after that, and no host thread waits."""

    def __init__(self, gpu: Gpu, gathers: int) -> None: ...
    def end(self) -> None:
        """By the gathers' thread, in any case: nothing of them runs any more."""
    def hold(self, stream: int, seconds: float) -> bool:
        """What is put into the stream from now on comes after the reads. False: in so many seconds
        they were not all launched."""

class GpuChannel:
    """Streams and room for the copies of one direction, a copy at a time. `urgent`: before other
    work of the GPU. `staging_bytes` of the GPU's memory, of which two lanes have a half each."""

    def __init__(self, gpu: Gpu, urgent: bool, staging_bytes: int) -> None: ...

class GpuMemory:
    """Memory of a GPU: new, or with a `handle` another process's (CUDA IPC), of which `size` bytes
    must be there. Multiples of 2 MiB. RuntimeError: of the driver. Closing frees or unmaps it; who reads
    there then ends the engine."""

    def __init__(self, gpu: Gpu, size: int, handle: bytes | None = None) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def handle(self) -> bytes:
        """For other processes: 64 bytes."""
    def write(self, offset: int, data: bytes) -> None:
        """Some bytes, and waits."""
    def read(self, offset: int, size: int) -> bytes: ...
    def close(self) -> None: ...

class GpuPool:
    """Slots in a GPU's memory, one segment. Closing closes the memory."""

    def __init__(self, memory: GpuMemory, granule_bytes: int, slots: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def tier(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def segment_slots(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def granule_bytes(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    def segment(self, n: int) -> tuple[int, int]: ...
    def slot_address(self, place: bytes, room: int = 0) -> int: ...
    def close(self) -> None: ...

class GpuCopier:
    """Gather and scatter on a GPU: one launch for up to 256 chunks. A chunk is (address of a slot,
    key, generation, vLLM's blocks, whether the slot is in a GPU's memory: no when left out), and
    the slots of one call are in one kind of memory. Calls return when all is done, and drop the
    lock; kernels run after `after`. `staged`: slots are copied as a whole, and kernels work in the
    GPU's memory; so are slots that are not registered. RuntimeError: nothing counts as done."""

    def __init__(
        self,
        gpu: Gpu,
        layout: SlotLayout,
        pages: Pages,
        blocks_per_chunk: int,
        kernel_blocks: int = 1,
        multiprocessors: int = 8,
    ) -> None:
        """`pages` tells of kernel blocks, so many of which are one of vLLM's. Launches fill so many
        multiprocessors at most."""
    @property
    def piece(self) -> int:
        """Bytes of an access to pages: 16, 8 or 4."""
    def gather(
        self,
        channel: GpuChannel,
        chunks: Sequence[_GpuChunk],
        after: GpuMark | None = None,
        staged: bool = False,
        fence: GpuFence | None = None,
    ) -> None:
        """As Copier.gather."""
    def audit(self, channel: GpuChannel, chunks: Sequence[_GpuChunk]) -> list[int]:
        """SlotStatus of each: GOOD where the blocks still have the digests of the slot's table."""
    def verify(self, channel: GpuChannel, chunks: Sequence[_GpuChunk]) -> list[int]:
        """SlotStatus of slots in a GPU's memory, by their own bytes; no block is read."""
    def clear(self, channel: GpuChannel, chunks: Sequence[_GpuChunk]) -> None:
        """No reader accepts these slots in a GPU's memory from here on."""
    def scatter(
        self,
        channel: GpuChannel,
        chunks: Sequence[_GpuChunk],
        part: SlotPart | None = None,
        after: GpuMark | None = None,
        staged: bool = False,
    ) -> list[int]:
        """As Copier.scatter and scatter_part; the SlotStatus of each."""

# ---------------------------------------------------------------- slot table (csrc/slots)

class SlotTable:
    """Slots of one instance, the same in every rank's pool (DESIGN.md 5).

    reserve() -> gather or pull on every rank -> admit(), or abort(). Only admitted slots are found.
    Thread-safe: one mutex, sections under 10 us, no interpreter lock. `now` is seconds of the
    caller's clock.
    """

    def __init__(
        self,
        capacity: int,
        segment_slots: int,
        retired_share: float = 0.03,
        reuse_age: float = 0.1,
        tier: int = 0,
    ) -> None:
        """Room for `capacity` slots at most, none usable yet. `tier` is the pools'."""
    def grow(self, slots: int) -> None:
        """Slots [0, slots) are usable now; never fewer than before."""
    def begin_epoch(self) -> None:
        """Retire and forget all; counters begin at 1. Reserved and limbo slots stay taken until
        they are aborted or ended, and cannot be admitted: admit() answers 0 for them."""
    def lookup(self, keys: bytes, use: bool = True) -> int:
        """Length of the longest readable prefix; `use` counts it as a use. Revives retired slots
        of the prefix (when `use`), whose announcement is then due: see `take_changes`."""
    def contains(self, keys: bytes) -> bytes:
        """One u8 a key: 1 readable, 2 reserved, 0 neither."""
    def places(self, keys: bytes) -> tuple[bytes, bytes, int]:
        """(places, counters, n) of the longest readable prefix of n keys."""
    def reserve(self, keys: bytes, now: float, granules: bytes = b"") -> tuple[bytes, bytes] | None:
        """Room for all the keys: (places, counters); of so many `granules` each (u8, 1 to 16), by
        default full slots. None: not enough can be evicted. A key that is
        readable or reserved already raises ValueError (ask `contains` first). Consecutive keys
        prefer consecutive slots. Reuse takes the oldest retired slot (older than `reuse_age`
        where possible), then retires the least recently used prefix tail. OverflowError: the
        epoch's counters are used up, begin another."""
    def reserve_again(self, keys: bytes, now: float, granules: bytes) -> tuple[bytes, bytes] | None:
        """Room for chunks that are readable in another form. Nobody finds these slots before
        replace(); abort() gives them up."""
    def replace(
        self, places: bytes, counters: bytes, old_places: bytes, old_counters: bytes
    ) -> bytes:
        """Slots of reserve_again(), written by every rank, take names and ages of the old ones,
        which are retired with their bytes. u8 each: 1 done, 0 the old one is not readable any more
        (or either is of an ended epoch), 2 it is pinned; the new slot stays reserved then."""
    def admit(self, places: bytes, counters: bytes, front: bool = True) -> int:
        """Make reserved slots readable; returns how many were (a slot of an ended epoch or an
        aborted one is not). `front` False: first in line for retirement (a pulled copy)."""
    def abort(self, places: bytes, counters: bytes, limbo: bool = False) -> None:
        """Give reserved slots up: free, or in limbo until `end_limbo`."""
    def end_limbo(self, places: bytes, counters: bytes) -> None: ...
    def pin(self, keys: bytes) -> tuple[bytes, bytes, int]:
        """Pin the longest readable prefix: (places, counters, n) of what `unpin` is to be given, as
        another thread may retire it at once. Counted."""
    def unpin(self, places: bytes, counters: bytes) -> None:
        """One pin less for each slot, matched by place and counter. Unknown ones are ignored."""
    def touch(self, places: bytes, counters: bytes) -> None:
        """Uses by peers, as the controller tells."""
    def retire(self, keys: bytes, revivable: bool = True) -> int:
        """Take readable slots out of use; returns how many. A pinned one keeps its bytes until its
        last pin goes, and is not revived; nor is any that is not to be `revivable`, as its bytes are
        wrong or nobody wants them, and neither are those that were retired before."""
    def take_changes(self) -> list[tuple[bool, bytes, bytes, bytes]]:
        """What must be announced (True) or retracted (False) since the last call, as (announce,
        keys, places, counters) of at most 4,096 slots, in the order in which to send them. It is
        the difference to what was told before: what came and went in between is not in it."""
    def take_ages(self) -> list[float]:
        """Of the slots that were retired for room since the last call (the first 1,024): seconds
        from their reservation on."""
    def sums(self) -> tuple[int, int, int]:
        """(count, first, second) over readable slots (`place.h`), minus changes not yet taken: it
        is the state that a listener of `take_changes` has."""
    def slice(self, first: int, last: int) -> tuple[bytes, bytes, bytes]:
        """(keys, places, counters) of readable slots whose first granule is in [first, last), as of
        the changes taken, in the order of their granules."""
    def slice_end(self, first: int, last: int, most: int) -> int:
        """The greatest end, `last` at most, for which slice(first, end) has no more than `most`
        slots, or those of the first full slot's granules."""
    def granules(self) -> dict[str, int]:
        """By state: free, reserved, readable, pinned, retired, limbo."""
    @property
    def capacity(self) -> int: ...
    @property
    def usable(self) -> int: ...
    @property
    def pins(self) -> int:
        """Pins held, over all slots."""

# ---------------------------------------------------------------- directory (csrc/directory)

class Directory:
    """The controller's index: key -> holders (DESIGN.md 6). One thread.

    Instances are small integers. An instance has a group (`group`: equal means compatible) and a
    host (`host`: equal means the same machine). Dropping an instance is a stamp, swept later.
    """

    def __init__(self) -> None: ...
    def add(self, group: int, host: int) -> int:
        """A new instance with nothing; numbers are reused after `drop` and `sweep`."""
    def drop(self, instance: int) -> None: ...
    def announce(self, instance: int, keys: bytes, places: bytes, counters: bytes) -> int:
        """Returns how many were new. A key announced again moves to its new place."""
    def retract(self, instance: int, keys: bytes, places: bytes, counters: bytes) -> int:
        """Returns how many were there with that place and counter."""
    def expect(self, instance: int, keys: int) -> None:
        """Its next sync will state about so many keys: the table grows for them at once, and
        memory is made ready by a thread. They need not come."""
    def begin_sync(self, instance: int) -> None: ...
    def sync_slice(
        self, instance: int, first: int, last: int, keys: bytes, places: bytes, counters: bytes
    ) -> tuple[int, int, bytes, bytes]:
        """How many keys were not there, how many were elsewhere, and the first 256 of each."""
    def end_sync(self, instance: int) -> int:
        """Entries not stated since `begin_sync` are gone; returns how many."""
    def watch(self, instance: int, on: bool) -> None:
        """Note which keys an `end_sync` hides, from now on or no more."""
    def gone(self, instance: int) -> bytes:
        """Those noted, as `sweep` comes across them: the first 256."""
    def sums(self, instance: int) -> tuple[int, int, int]: ...
    def locate(
        self,
        keys: bytes,
        asker: int,
        loads: Sequence[float] | None = None,
        avoid: Sequence[int] = (),
        sparse: bool = False,
    ) -> tuple[
        list[tuple[int, int, int, int]], list[tuple[int, int, int, int]], bytes, bytes, int, int
    ]:
        """(runs, alternates, places, counters, found, incompatible) for the longest prefix held by
        instances of the asker's group other than the asker; runs are (first, n, instance, offset
        in the arrays). `asker` -1 is nobody: every group counts. `loads` is indexed by instance.
        `incompatible` is an instance of another group that holds key `found`, or -1. `sparse`
        goes on behind a key that nobody has: runs leave it out, `found` counts those held, and
        `incompatible` holds the first key that only other groups' instances hold."""
    def holders(self, key: bytes) -> list[int]: ...
    def sweep(self, entries: int) -> bool:
        """Clean up to `entries` table entries of dropped instances, then give back room that was
        made for keys that did not come; True when nothing is left to do."""
    def __len__(self) -> int:
        """Visible keys."""
    @property
    def lacking(self) -> bool:
        """Memory for what is expected is still being made by a thread: what is announced now may
        have to wait for the system itself."""
    @property
    def bytes(self) -> int:
        """Memory held by the tables."""
    @property
    def moved(self) -> int:
        """Entries that were moved because the table grew or shrank, since the beginning."""

# ---------------------------------------------------------------- processors (csrc/turns.h)

def set_turn(microseconds: int) -> int:
    """Ask the kernel's scheduler for turns of that length, for this thread and those that it starts
    from then on; returns the length that it has then, 0 where the kernel cannot (before Linux
    6.12). The shorter the turns, the sooner one comes; the share of the processor stays."""

# ---------------------------------------------------------------- transports (csrc/nixl, mover only)

class TransferState:
    PENDING: int
    DONE: int
    FAILED: int

class Transport:
    """One-sided reads. `kind`: `nixl` (the C library, dlopened) or `loopback` (tests only: agents
    of one process find each other by name). See tests/contract/test_transport.py."""

    def __init__(self, kind: str, name: str, library: str = "", progress: bool = False) -> None:
        """`library`: path of libnixl_capi.so. Raises RuntimeError naming the package to install
        when it is missing, or what failed. `progress`: a progress thread (the serve agent)."""
    def register(self, address: int, length: int, tier: int = 0) -> None:
        """`tier`: 0 memory of the host, 1 of the one GPU that this process sees. RuntimeError: the
        transport takes no such memory."""
    def metadata(self) -> bytes: ...
    def connect(self, metadata: bytes) -> str:
        """The peer's agent name. RuntimeError if the metadata is not understood."""
    def forget(self, peer: str) -> None:
        """Never while a READ to that peer is pending: ValueError."""
    def read(
        self,
        peer: str,
        local: Sequence[int],
        remote: Sequence[int],
        lengths: Sequence[int],
        remote_tier: int = 0,
    ) -> int:
        """Post one READ of several ranges (addresses); a number. RuntimeError if the post fails."""
    def poll(self, transfer: int) -> int:
        """A TransferState; a finished number is released and may not be polled again."""
    @property
    def pending(self) -> int: ...
    def self_test(self, serve: Transport, deadline: float) -> None:
        """READ 64 bytes from `serve`, an agent of this process. RuntimeError unless they come, and
        unchanged, within `deadline` seconds."""
    def close(self) -> None:
        """ValueError while a READ is under way: only the end of the process ends it."""

# ---------------------------------------------------------------- pulls (csrc/nixl, mover only)

def die_with_parent() -> None:
    """This process is killed when the thread that spawned it ends (PR_SET_PDEATHSIG)."""

class PullPeer:
    """One life of a peer's rank, as last announced. `id` names that life; other metadata under the
    same id connects anew. `address` is the pool's there, the rest counts granules."""

    def __init__(
        self,
        id: str,
        metadata: bytes,
        address: int,
        granule_bytes: int,
        segment_granules: int,
        usable_granules: int,
        tier: int = 0,
    ) -> None: ...
    @property
    def id(self) -> str: ...

class PullEvent:
    """A job has been judged; or `limbo_ended`: the READs left at its deadline have ended."""

    @property
    def limbo_ended(self) -> bool: ...
    @property
    def job(self) -> int: ...
    @property
    def results(self) -> bytes:
        """One u8 a chunk, `messages.PullResult`."""
    @property
    def seconds(self) -> float: ...
    @property
    def bytes(self) -> int:
        """Of good slots, with header and table."""
    @property
    def stale(self) -> bool:
        """What is known of the peer is out of date, or it is dead."""
    @property
    def error(self) -> str: ...

class PullEngine:
    """Peers' slots into reserved ones of `pool`, READ, checked and resealed under the own
    generation by threads of its own. `pool` is mapped writable and registered with `transport`,
    which belongs to the engine from now on, but for `register`. Slots of a GpuPool are judged and
    resealed on `gpu`, which has its kernels, by so many multiprocessors at most."""

    def __init__(
        self,
        transport: Transport,
        pool: PoolMap | GpuPool,
        gpu: Gpu | None = None,
        multiprocessors: int = 1,
    ) -> None: ...
    def pull(
        self,
        job: int,
        peer: PullPeer,
        layout: SlotLayout,
        peer_epoch: int,
        own_epoch: int,
        keys: bytes,
        remote_places: bytes,
        remote_counters: bytes,
        own_places: bytes,
        own_counters: bytes,
        deadline: float,
    ) -> None:
        """Chunks of one cache group: `layout` is their slots' on both sides. One event follows,
        `deadline` seconds from now at the latest; when a result in it is TIMEOUT, a `limbo_ended`
        follows it. ValueError for own places that are no usable slots."""
    def pull_parts(
        self,
        job: int,
        peers: Sequence[PullPeer],
        parts: Sequence[SlotPart],
        layout: SlotLayout,
        peer_epoch: int,
        own_epoch: int,
        keys: bytes,
        remote_places: bytes,
        remote_counters: bytes,
        own_places: bytes,
        own_counters: bytes,
        deadline: float,
    ) -> None:
        """The same where slots of `layout` are put together from parts of `peers`, ranks of one
        instance: a chunk is as good as the worst of its parts, and its slot is in limbo as long as
        one of them may land. ValueError, too, unless the parts are all of a slot, each segment
        once, and for a pool in a GPU's memory."""
    def connect(self, peer: PullPeer) -> None:
        """Ahead of need: the first READ from a peer costs some 10 ms more."""
    def forget(self, id: str) -> None:
        """Its jobs end as PEER_DEAD; the connection goes once no READ is under way on it."""
    def take(self) -> list[PullEvent]: ...
    @property
    def fd(self) -> int:
        """Readable when `take` has something."""
    @property
    def lost(self) -> str:
        """Why own slots cannot be reached any more, which ends every job as MOVER_DOWN; "": they
        can."""
    @property
    def limbo_slots(self) -> int: ...
    @property
    def limbo_seconds(self) -> float:
        """How long ago the oldest READ timed out that has not ended; 0: there is none."""
