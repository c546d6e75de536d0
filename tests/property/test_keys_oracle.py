"""Keys against the oracle (`blake3` package): any lengths, chunk sizes, extras, splits, cuts."""

import array
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv.core.extras import pack

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
from make_keys import keys_of

SPECS = st.lists(st.text(max_size=120), min_size=1, max_size=3)
ITEMS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80)), max_size=3)
# Around the widths of the lanes (8, 16) and their blocks, and through BLAKE3's trees.
CHUNKS = st.sampled_from([1, 3, 16, 32, 100, 128, 256, 257, 512, 544])


@pytest.fixture(params=_native.isas(), autouse=True, scope="module")
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def tokens_for(seed, count):
    return [(seed + i * i * 2654435761) % (1 << 32) for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    namespace=st.text(max_size=200),
    specs=SPECS,
    chunk_tokens=CHUNKS,
    chunks=st.integers(0, 40),
    tail=st.integers(0, 600),
    seed=st.integers(0, (1 << 32) - 1),
    common=ITEMS,
    extras=st.dictionaries(st.integers(0, 12), ITEMS, max_size=4),
    cuts=st.lists(st.integers(0, 12000), max_size=6),
    as_buffer=st.booleans(),
)
def test_any_split_gives_the_oracles_keys(
    namespace, specs, chunk_tokens, chunks, tail, seed, common, extras, cuts, as_buffer
):
    tokens = tokens_for(seed, chunks * chunk_tokens + tail % chunk_tokens)
    chain = _native.KeyHasher(namespace, specs, chunk_tokens).chain(pack(common))
    packed = {n: pack(items) for n, items in extras.items()}
    ends = sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)})
    for end in ends:
        part = tokens[chain.tokens : end]
        chain.extend(array.array("I", part) if as_buffer else part, chain.tokens, packed)
        packed = {}  # once is enough
    assert chain.tokens == len(tokens)
    assert len(chain) == chunks
    expected = keys_of(
        namespace, specs, chunk_tokens, tokens, extras | {0: common + extras.get(0, [])}
    )
    for group, keys in enumerate(expected):
        assert chain.keys(group) == b"".join(keys)


@settings(max_examples=60, deadline=None)
@given(
    chunk_tokens=st.sampled_from([4, 16, 256]),
    steps=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=6),
    extras=st.dictionaries(st.integers(0, 6), ITEMS, max_size=3),
)
def test_a_cut_chain_is_one_that_never_had_more(chunk_tokens, steps, extras):
    """A session: its input grows, is cut, and grows again with other tokens."""
    hasher = _native.KeyHasher("n=1\n", ["g=1\n"], chunk_tokens)
    packed = {n: pack(items) for n, items in extras.items()}
    chain, tokens = hasher.chain(), []
    for turn, (cut, grow) in enumerate(steps):
        tokens = tokens[:cut]
        chain.truncate(cut)
        assert cut - chunk_tokens < chain.tokens <= max(cut, 0) or chain.tokens == len(tokens)
        tokens += tokens_for(turn, grow)
        chain.extend(tokens[chain.tokens :], chain.tokens, packed)
        fresh = hasher.chain()
        fresh.extend(tokens, 0, packed)
        assert (chain.tokens, len(chain)) == (len(tokens), len(fresh))
        assert chain.keys() == fresh.keys()
