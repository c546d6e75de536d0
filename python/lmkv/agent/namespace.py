"""Namespace and group specs: canonical texts of what, common to an engine, changes KV bytes.

They are part of every key (docs/keys.md), so that engines share exactly when these agree. Where an
engine's KV cannot be named (weights that cannot be fingerprinted, scales that depend on what was
computed before) `Unshareable` says why, in one sentence. vLLM's objects are read by their
attributes; vLLM is not imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmkv import _native
from lmkv.core.identity import lines, weights_fingerprint

FORMAT = "1"  # of keys; raised when the same KV would get another key

# Load formats that read a folder's safetensors.
_SAFETENSORS = (
    "auto hf safetensors fastsafetensors instanttensor runai_streamer mistral bitsandbytes"
)
SAFETENSORS = frozenset(_SAFETENSORS.split())

# KV dtypes without scales, or with static ones (in the checkpoint, so in its fingerprint).
_STATIC_KV = "auto float16 bfloat16 float32 fp8 fp8_e4m3 fp8_e5m2 fp8_inc"
STATIC_KV = frozenset(_STATIC_KV.split())

# Of a model's config: where it was found, by whom it was written, and what has its own line here.
_NOT_CONFIG = """
    _name_or_path name_or_path _commit_hash transformers_version torch_dtype dtype
    _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    attn_implementation _experts_implementation _experts_implementation_internal
"""
NOT_CONFIG = frozenset(_NOT_CONFIG.split())

KINDS = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "mla",
    "SlidingWindowSpec": "window",
    "SlidingWindowMLASpec": "window_mla",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "SinkFullAttentionSpec": "sink",
    "MambaSpec": "mamba",
}


class Unshareable(Exception):
    """This engine's KV cannot be shared; the text says why."""


def namespace(
    vllm_config: Any, chunk_tokens: int, weights_version: str = "", isolation_word: str = ""
) -> str:
    """The namespace's text. `isolation_word` sets an engine apart whose weights have changed."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    fields = {
        "architecture": ",".join(getattr(model.hf_config, "architectures", None) or ["?"]),
        "chunk_tokens": str(chunk_tokens),
        "config": config_hash(model.hf_config),
        "dtype": _dtype(model.dtype),
        "format": FORMAT,
        "kv_dtype": _kv_dtype(model, cache),
        "quantization": str(model.quantization or "none"),
        "weights": _weights(vllm_config, weights_version),
    }
    optional = {"isolation": isolation_word, "weights_version": weights_version}
    optional |= _settings(vllm_config)
    return lines(fields | {name: value for name, value in optional.items() if value})


def content_ids(vllm_config: Any) -> bool:
    """Whether vLLM names a multimodal input by its content. With neither its prefix cache nor its
    processor cache it counts them instead, alike in every engine."""
    multimodal = getattr(vllm_config.model_config, "multimodal_config", None)
    uncached = multimodal is not None and multimodal.mm_processor_cache_gb == 0
    return bool(vllm_config.cache_config.enable_prefix_caching) or not uncached


def group_spec(group: Any, kv_heads: int, layers: Sequence[str] | None = None) -> str:
    """The text of a vLLM KV cache group: `kv_heads` of the whole model, not of a rank; `layers`
    (names) where not all of the group's are shared."""
    spec = group.kv_cache_spec
    inner = getattr(spec, "kv_cache_specs", None)  # several specs of one kind and page size
    specs = list(inner.values()) if inner else [spec]
    kinds = sorted({KINDS.get(type(s).__name__, type(s).__name__) for s in specs})
    fields = {
        "head_size": _each(specs, _head_size),
        "kind": ",".join(kinds),
        "kv_heads": str(kv_heads),
        "layers": layer_numbers(list(layers if layers is not None else group.layer_names)),
        "window": _each(specs, lambda s: str(_window(s))),
    }
    states = _each(specs, lambda s: " ".join(_dtype(d) for d in getattr(s, "dtypes", ())))
    if states:  # Mamba's; attention's dtype is the namespace's
        fields["state_dtypes"] = states
    return lines(fields)


def layer_numbers(names: Sequence[str]) -> str:
    """`0-3,7` for `model.layers.0.self_attn` ..; the names where numbers would not tell them
    apart."""
    found = [re.search(r"\.(\d+)\.", name) for name in names]
    numbers = sorted(int(match[1]) for match in found if match)
    if len(set(numbers)) != len(names):
        return ",".join(sorted(names))
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def config_hash(hf_config: Any) -> str:
    """64 hex digits of a transformers config as the engine uses it: overrides and rope scaling in,
    paths and versions out."""
    return _native.blake3(_json(_plain(hf_config, "config")).encode()).hex()


def _plain(value: Any, where: str) -> Any:
    """The JSON value of a config's value. Unshareable for one whose text is not its content."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {
            str(k): _plain(v, f"{where}.{k}") for k, v in value.items() if str(k) not in NOT_CONFIG
        }
    if isinstance(value, (list, tuple)):
        return [_plain(v, where) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(v, where) for v in value), key=str)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict(), where)
    if type(value).__name__ == "dtype":
        return _dtype(value)
    if isinstance(getattr(value, "value", None), (int, str)):  # an enum's member
        return value.value
    raise Unshareable(f"the model's {where} is a {type(value).__name__}, which has no plain text")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _dtype(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _kv_dtype(model: Any, cache: Any) -> str:
    asked = str(cache.cache_dtype)
    if asked not in STATIC_KV:
        raise Unshareable(f"KV cache dtype '{asked}' has scales that depend on the tokens")
    if getattr(cache, "calculate_kv_scales", False):
        raise Unshareable("calculate_kv_scales: the scales depend on the first tokens computed")
    quantized = _plain(getattr(model.hf_config, "quantization_config", None), "config") or {}
    scheme = quantized.get("kv_cache_scheme") or quantized.get("kv_cache_quant_algo")
    if isinstance(scheme, dict) and scheme.get("dynamic"):
        raise Unshareable("the checkpoint's kv_cache_scheme has dynamic scales")
    if asked != "auto":
        return asked
    return "checkpoint" if scheme else _dtype(model.dtype)


def _weights(vllm_config: Any, weights_version: str) -> str:
    load = str(
        getattr(vllm_config.load_config.load_format, "value", vllm_config.load_config.load_format)
    )
    if load == "dummy":
        # Each rank draws its own part from the same seed: another TP size is another model.
        parallel = vllm_config.parallel_config.tensor_parallel_size
        device = getattr(vllm_config.device_config, "device_type", "?")
        return f"dummy seed {vllm_config.model_config.seed} tp {parallel} {device}"
    try:
        if load not in SAFETENSORS:
            raise ValueError(f"load format '{load}' does not read safetensors")
        return weights_fingerprint(_model_folder(vllm_config))
    except (OSError, ValueError) as error:
        if weights_version:
            return "named"
        raise Unshareable(
            f"the weights cannot be fingerprinted ({error}); name them with weights_version"
        ) from error


def _model_folder(vllm_config: Any) -> Path:
    """The model's local folder; of a hub id, the one in the hub's cache. Never the network."""
    model = vllm_config.model_config
    name = str(getattr(model, "model_weights", "") or model.model)
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or name.startswith(("/", ".")) or "://" in name:
        raise ValueError(f"{name}: not a local folder")
    try:
        from huggingface_hub import snapshot_download  # slow to import
    except ImportError as error:
        raise ValueError(f"{name}: no local folder, and huggingface_hub is not there") from error
    try:
        return Path(
            snapshot_download(
                name,
                revision=model.revision,
                cache_dir=vllm_config.load_config.download_dir,
                local_files_only=True,
            )
        )
    except Exception as error:  # its errors have no common base beside this
        raise ValueError(f"{name}: not in the hub's local cache") from error


def _settings(vllm_config: Any) -> dict[str, str]:
    """Engine settings that change KV and are not in the model's config, where not the default."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    found: dict[str, Any] = {
        "kv_cache_dtype_skip_layers": list(
            getattr(cache, "kv_cache_dtype_skip_layers", None) or []
        ),
        "model_class_overrides": getattr(model, "model_class_overrides", None),
        "model_impl": _not(getattr(model, "model_impl", "auto"), "auto"),
        "disable_sliding_window": getattr(model, "disable_sliding_window", False),
        "quantization_config": getattr(model, "quantization_config", None),
        "max_model_len": model.max_model_len if _rope_by_length(model.hf_config) else None,
    }
    multimodal = getattr(model, "multimodal_config", None)
    for name in ("video_pruning_rate", "video_pruning_method", "mm_encoder_attn_dtype"):
        found[name] = getattr(multimodal, name, None) if multimodal is not None else None
    lora = getattr(vllm_config, "lora_config", None)
    if lora is not None:
        found["lora_dtype"] = _not(_dtype(getattr(lora, "lora_dtype", "auto")), _dtype(model.dtype))
    return {name: _json(_plain(value, name)) for name, value in found.items() if value}


def _rope_by_length(hf_config: Any) -> bool:
    """Whether the rope's factors are chosen by the engine's maximum length (Phi's long rope)."""
    text = json.dumps(_plain(hf_config, "config"))
    return any(f'"{kind}"' in text for kind in ("longrope", "su"))


def _not(value: Any, default: str) -> Any:
    text = str(getattr(value, "value", value))
    return None if text == default else text


def _each(specs: Sequence[Any], read: Any) -> str:
    return ",".join(sorted({read(s) for s in specs}))


def _head_size(spec: Any) -> str:
    size, size_v = getattr(spec, "head_size", 0), getattr(spec, "head_size_v", None)
    return str(size) if not size_v or size_v == size else f"{size}/{size_v}"


def _window(spec: Any) -> int:
    return getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None) or 0
