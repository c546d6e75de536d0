"""The worker: creates the pool, copies between it and vLLM's blocks, spawns its mover."""
