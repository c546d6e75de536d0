"""The mover: the one process of an instance's rank that speaks to other movers.

It maps its worker's pool, serves it to peers and pulls from theirs. It imports neither torch, nor
vLLM, nor the `nixl` package (which would import torch).
"""
