"""Keys (docs/keys.md): golden vectors, the growing chain, and what makes it refuse."""

import array
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from lmkv import _native
from lmkv.core.extras import pack

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/keys.json").read_text())
NAMESPACE, SPEC = "format=1\n", "kind=full\n"


@pytest.fixture(params=_native.isas())
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def chain(chunk_tokens=4, extra=b"", specs=(SPEC,)):
    return _native.KeyHasher(NAMESPACE, list(specs), chunk_tokens).chain(extra)


def split(raw):
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_vectors(case, isa):
    t = case["tokens"]
    tokens = [(t["first"] + i * t["step"]) % t["modulus"] for i in range(t["count"])]
    extras = {
        int(n): pack((tag, bytes.fromhex(v)) for tag, v in items)
        for n, items in case["extras"].items()
    }
    hasher = _native.KeyHasher(case["namespace"], case["group_specs"], case["chunk_tokens"])
    grown = hasher.chain()
    whole = grown.extend(tokens, 0, extras)
    assert whole == len(grown) == len(case["keys"][0])
    assert grown.tokens == len(tokens)
    for group, keys in enumerate(case["keys"]):
        assert [key.hex() for key in split(grown.keys(group))] == keys
    # A request's own items (salt, LoRA) may come with the chain instead: the same keys.
    other = hasher.chain(extras.pop(0, b""))
    other.extend(tokens, 0, extras)
    assert other.keys() == grown.keys()


def test_blake3_of_any_length(isa):
    data = bytes(range(251)) * 300
    for n in [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3073, 16384, 17 * 1024 + 1, len(data)]:
        assert _native.blake3(data[:n]) == blake3(data[:n]).digest(), n
        derived = blake3(data[:n], derive_key_context="a context").digest()
        assert _native.blake3(data[:n], "a context") == derived, n


def test_a_chain_grows_token_by_token():
    whole = chain()
    assert whole.extend([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 2
    assert whole.tokens == 9
    grown = chain()
    assert [grown.extend([t], t - 1) for t in range(1, 10)] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert grown.keys() == whole.keys()
    assert grown.keys(0, 1, 2) == whole.keys()[16:]
    assert grown.keys(0, 2) == b""


def test_tokens_taken_already_are_skipped_and_gaps_refused():
    grown = chain()
    grown.extend([1, 2, 3, 4, 5])
    assert grown.extend([1, 2, 3, 4, 5, 6, 7, 8]) == 2  # from the start again, as vLLM's list grows
    assert grown.extend([3, 4, 5], 2) == 2
    with pytest.raises(ValueError, match="start 9 leaves a gap: the chain has 8 tokens"):
        grown.extend([10], 9)
    fresh = chain()
    fresh.extend(list(range(1, 9)))
    assert grown.keys() == fresh.keys()


def test_every_key_depends_on_every_token_before_it():
    a, b = chain(), chain()
    a.extend([1, 2, 3, 4, 5, 6, 7, 8])
    b.extend([0, 2, 3, 4, 5, 6, 7, 8])
    assert not set(split(a.keys())) & set(split(b.keys()))


def test_a_cut_goes_back_to_a_whole_chunk_or_keeps_the_tail():
    grown = chain()
    grown.extend([1, 2, 3, 4, 5, 6, 7])
    grown.truncate(6)
    assert grown.tokens == 6
    assert grown.extend([7, 8], 6) == 2
    grown.truncate(3)  # inside the first chunk, whose tokens are gone
    assert grown.tokens == 0
    assert grown.extend([1, 2, 3, 9]) == 1
    fresh = chain()
    fresh.extend([1, 2, 3, 9])
    assert grown.keys() == fresh.keys()


def test_extras_are_remembered_until_their_chunk_is_whole():
    items = pack([(3, b"an image")])
    at_once = chain()
    at_once.extend([1, 2, 3, 4], 0, {0: items})
    grown = chain()
    grown.extend([1, 2], 0, {0: items})
    grown.extend([3, 4], 2)
    plain = chain()
    plain.extend([1, 2, 3, 4])
    assert grown.keys() == at_once.keys() != plain.keys()
    grown.truncate(0)  # the image went with the tokens
    grown.extend([1, 2, 3, 4])
    assert grown.keys() == plain.keys()


def test_salt_and_adapter_reach_all_chunks_and_the_order_of_items_does_not_matter():
    salted, other = chain(extra=pack([(1, b"a")])), chain(extra=pack([(1, b"b")]))
    plain = chain()
    for c in (salted, other, plain):
        c.extend(range(8))
    keys = [set(split(c.keys())) for c in (salted, other, plain)]
    assert len(keys[0] | keys[1] | keys[2]) == 6
    one, two = pack([(1, b"a")]), pack([(2, b"b")])
    first, second = chain(extra=one + two), chain(extra=two + one)
    first.extend(range(4))
    second.extend(range(4))
    assert first.keys() == second.keys()


def test_groups_have_their_own_keys():
    grown = chain(specs=["kind=full\n", "kind=window\n"])
    grown.extend(range(8))
    assert grown.keys(0) != grown.keys(1)
    with pytest.raises(ValueError, match="group 2 of 2"):
        grown.keys(2)
    with pytest.raises(ValueError, match=r"keys \[0, 3\) of 2 whole chunks"):
        grown.keys(0, 0, 3)


class Wrapped(int):
    """An int of another type, as numpy's are."""


@pytest.mark.parametrize(
    "tokens",
    [
        array.array("I", range(8)),
        tuple(range(8)),
        range(8),
        [Wrapped(t) for t in range(8)],
        array.array("q", range(8)),
        memoryview(array.array("I", range(8))),
    ],
    ids=["u32 buffer", "tuple", "range", "ints of a subclass", "i64 buffer", "memoryview"],
)
def test_tokens_of_any_sequence(tokens):
    grown, expected = chain(), chain()
    grown.extend(tokens)
    expected.extend(list(range(8)))
    assert grown.keys() == expected.keys()
    assert len(grown) == 2


@pytest.mark.parametrize("bad", [-1, 1 << 32, 1 << 70, -(1 << 40)])
@pytest.mark.parametrize("make", [list, tuple])
def test_a_token_outside_u32_is_refused_and_none_is_taken(bad, make):
    grown = chain()
    grown.extend([7])
    with pytest.raises(ValueError, match=rf"number 2 is {bad}, outside 0..4294967295"):
        grown.extend(make([8, bad, 9, 10]), 1)
    assert grown.tokens == 1
    assert len(grown) == 0


def test_what_is_no_token_is_refused():
    grown = chain()
    with pytest.raises(TypeError):
        grown.extend([1, "2", 3, 4])
    with pytest.raises(ValueError, match="is not one of u32"):
        grown.extend(b"12345678")
    with pytest.raises(TypeError):
        grown.extend(None)
    assert grown.tokens == 0


@pytest.mark.parametrize("torn", [b"\x01", b"\x01\x05\x00\x00\x00ab", pack([(1, b"a")]) + b"\x02"])
def test_torn_items_are_refused(torn):
    with pytest.raises(ValueError, match="extra: "):
        chain(extra=torn)
    with pytest.raises(ValueError, match="extra: "):
        chain().extend([1], 0, {0: torn})


def test_a_hasher_refuses_nonsense():
    with pytest.raises(ValueError, match="chunk_tokens 0 is outside"):
        _native.KeyHasher(NAMESPACE, [SPEC], 0)
    with pytest.raises(ValueError, match="at least one cache group"):
        _native.KeyHasher(NAMESPACE, [], 256)


def test_isas_are_told_and_forced():
    assert _native.isas()[0] == "scalar"
    assert _native.isa() in _native.isas()
    with pytest.raises(ValueError, match="'mmx' is not available here; allowed: scalar"):
        _native.set_isa("mmx")
    run = [sys.executable, "-c", "from lmkv import _native; print(_native.isa())"]
    forced = subprocess.run(
        run,
        env=os.environ | {"LMKV_ISA": "scalar"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert forced.stdout == "scalar\n"


def test_a_ten_line_program_and_any_hash_seed_give_the_same_keys(tmp_path):
    (tmp_path / "namespace").write_text(NAMESPACE)
    (tmp_path / "spec").write_text(SPEC)
    tokens = list(range(1000, 1600))
    program = [sys.executable, str(ROOT / "examples/keys.py"), "namespace", "spec", "256"]
    script = f"""if True:
        from lmkv import _native
        chain = _native.KeyHasher({NAMESPACE!r}, [{SPEC!r}], 256).chain()
        chain.extend(list(range(1000, 1600)))
        print(chain.keys(0, 0, 1).hex(), chain.keys(0, 1, 2).hex(), sep=chr(10))"""
    ours = [sys.executable, "-c", script]
    outputs = [
        subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed},
            input=" ".join(map(str, tokens)),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for command, seed in [(program, "0"), (ours, "1"), (ours, "2")]
    ]
    assert len(outputs[0].split()) == 2
    assert outputs[0] == outputs[1] == outputs[2]
