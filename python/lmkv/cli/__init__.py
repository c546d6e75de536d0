"""The `lmkv` command."""
