"""lmkv: vLLM instances share their KV caches."""

__version__ = "0.1.0"
