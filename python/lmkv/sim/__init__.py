"""The simulator: the real agents of many instances in one process and one thread, without vLLM."""
