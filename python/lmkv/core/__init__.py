"""The vocabulary of every lmkv process; imports neither torch nor vLLM."""
