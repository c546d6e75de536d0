"""Extras: what of a request goes into which chunk's key, and what opts a request out."""

import os
import struct
from types import SimpleNamespace

import pytest
from blake3 import blake3
from lmkv import _native
from lmkv.core.extras import (
    EMBEDS,
    LORA,
    MULTIMODAL,
    SALT,
    AdapterHashes,
    OptedOut,
    RequestExtras,
    pack,
    request_extras,
)


def request(**fields):
    plain = {
        "request_id": "r",
        "prompt_token_ids": [1, 2, 3],
        "prompt_embeds": None,
        "mm_features": [],
        "lora_request": None,
        "cache_salt": None,
        "pooling_params": None,
    }
    return SimpleNamespace(**(plain | fields))


def read(chunk_tokens=4, adapters=None, content_ids=True, **fields):
    return request_extras(
        request(**fields), chunk_tokens, adapters or AdapterHashes(), content_ids=content_ids
    )


CAT, DOG = "c" * 64, "d" * 64  # vLLM's hashes of two pictures


def image(identifier, offset, length):
    return SimpleNamespace(
        identifier=identifier,
        modality="image",
        mm_position=SimpleNamespace(offset=offset, length=length),
    )


def adapter(folder, weights=b"weights", rank=8):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(f'{{"r": {rank}}}')
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def lora(folder, number=1, name="ad", **fields):
    lora_request = {"lora_name": name, "lora_int_id": number, "lora_path": str(folder)}
    return SimpleNamespace(**(lora_request | {"load_inplace": False} | fields))


def keys_with(extras):
    chain = _native.KeyHasher("n=1\n", ["g=1\n"], 4).chain(extras.common)
    chain.extend(list(range(12)), 0, extras.chunks)
    return [chain.keys(0, n, n + 1) for n in range(3)]


def test_a_plain_request_has_none():
    assert read() == RequestExtras(b"", {})


def test_items_are_sorted_by_tag_and_then_bytes():
    assert pack([(2, b"b"), (1, b"zz"), (2, b"a")]) == (
        b"\x01\x02\0\0\0zz" + b"\x02\x01\0\0\0a" + b"\x02\x01\0\0\0b"
    )


def test_a_salt_is_common_to_the_request():
    assert read(cache_salt="tenant") == RequestExtras(pack([(SALT, b"tenant")]), {})
    assert not set(keys_with(read(cache_salt="a"))) & set(keys_with(read(cache_salt="b")))


def test_an_image_is_in_each_chunk_that_it_overlaps():
    extras = read(mm_features=[image(CAT, 3, 2), image(DOG, 8, 4)])
    cat, dog = b"\x40\0\0\0" + CAT.encode(), b"\x40\0\0\0" + DOG.encode()
    assert extras.chunks == {
        0: pack([(MULTIMODAL, cat + struct.pack("<iI", 3, 2))]),
        1: pack([(MULTIMODAL, cat + struct.pack("<iI", -1, 2))]),
        2: pack([(MULTIMODAL, dog + struct.pack("<iI", 0, 4))]),
    }


def test_two_images_with_the_same_placeholders_never_share():
    plain = keys_with(read())
    cat = keys_with(read(mm_features=[image(CAT, 5, 2)]))
    dog = keys_with(read(mm_features=[image(DOG, 5, 2)]))
    moved = keys_with(read(mm_features=[image(CAT, 6, 2)]))
    assert plain[0] == cat[0] == dog[0] == moved[0]  # before the image
    assert len({k[1] for k in (plain, cat, dog, moved)}) == 4
    assert len({k[2] for k in (plain, cat, dog, moved)}) == 4  # and all behind it


@pytest.mark.parametrize("name", [None, "", "renderer0-mm-1-image-0", "my picture", "c" * 63])
def test_an_input_that_is_not_named_by_its_content_opts_out(name):
    reason = f"multimodal input '{name}' is not named by its content"
    assert read(mm_features=[image(name, 0, 2)]) == OptedOut(reason)
    assert isinstance(read(mm_features=[image("ad:" + CAT, 0, 2)]), RequestExtras)


def test_inputs_of_an_engine_that_counts_them_opt_out():
    """A count hashed with processor arguments looks like content; the engine's settings tell."""
    assert isinstance(read(mm_features=[image(CAT, 0, 2)], content_ids=False), OptedOut)
    assert read(content_ids=False) == RequestExtras()


def test_an_adapter_counts_by_its_files_not_by_its_name_or_path(tmp_path):
    one, copy = adapter(tmp_path / "one"), adapter(tmp_path / "copy")
    other, higher = adapter(tmp_path / "other", b"Weights"), adapter(tmp_path / "higher", rank=16)
    hashes = AdapterHashes()
    found = [
        read(adapters=hashes, lora_request=lora(folder, number, name=f"name {number}")).common
        for number, folder in enumerate([one, copy, other, higher], 1)
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert found[0][:5] == struct.pack("<BI", LORA, 32)


def test_an_adapters_files_are_read_once(tmp_path, monkeypatch):
    hashes = AdapterHashes()
    reads = []
    read_files = AdapterHashes._read
    monkeypatch.setattr(AdapterHashes, "_read", lambda s, f: reads.append(1) or read_files(s, f))
    asked = lora(adapter(tmp_path / "ad"))
    assert hashes.hash(asked) == hashes.hash(asked)
    assert len(reads) == 1


def test_an_adapter_that_changes_under_vllm_is_opted_out(tmp_path):
    hashes = AdapterHashes()
    folder = adapter(tmp_path / "ad")
    before = hashes.hash(lora(folder, 1))
    adapter(folder, b"trained on")
    os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
    assert hashes.hash(lora(folder, 1)) == OptedOut(
        "LoRA 'ad': its files changed after it was loaded"
    )
    loaded_again = hashes.hash(lora(folder, 2))  # vLLM read the new files under a new id
    in_place = hashes.hash(lora(folder, 1, load_inplace=True))
    assert loaded_again == in_place != before


def test_an_adapter_that_is_no_folder_is_opted_out(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        reason = read(lora_request=lora(path)).reason
        assert reason == "LoRA 'ad' is not a local folder with its files"


class Rows:
    """A CPU tensor [rows, 2] of bytes, with what the extractor asks of torch's."""

    dtype = "torch.uint8"

    def __init__(self, rows):
        import ctypes

        self._rows = rows
        self.shape = (len(rows), 2)
        self._room = ctypes.create_string_buffer(b"".join(rows), 2 * len(rows))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, part):
        return Rows(self._rows[part])

    def detach(self):
        return self

    cpu = contiguous = detach

    def data_ptr(self):
        import ctypes

        return ctypes.addressof(self._room)

    def numel(self):
        return 2 * len(self._rows)

    def element_size(self):
        return 1


def test_embeddings_are_hashed_chunk_by_chunk():
    extras = read(prompt_token_ids=None, prompt_embeds=Rows([b"aa", b"bb", b"cc", b"dd", b"ee"]))
    assert extras.chunks == {
        0: pack([(EMBEDS, blake3(b"torch.uint8 4 2\naabbccdd").digest())]),
        1: pack([(EMBEDS, blake3(b"torch.uint8 1 2\nee").digest())]),
    }


def test_embeddings_mixed_with_token_ids_say_which_is_which():
    mixed = {"prompt_token_ids": [0, 7], "prompt_embeds": Rows([b"aa", b"bb"])}
    extras = read(prompt_is_token_ids=[False, True], **mixed)
    expected = blake3(b"torch.uint8 2 2\naabb\x00\x01").digest()
    assert extras.chunks == {0: pack([(EMBEDS, expected)])}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"soft_prompt": [1]}, "'soft_prompt', which this version of lmkv does not know"),
        ({"pooling_params": object()}, "a pooling request"),
        ({"prompt_token_ids": None}, "without token ids and without embeddings"),
    ],
)
def test_what_is_not_known_opts_out(fields, reason):
    assert reason in read(**fields).reason


def test_unknown_fields_that_are_not_set_change_nothing():
    assert read(soft_prompt=None, gate=False, _cache={1: 2}) == RequestExtras()
