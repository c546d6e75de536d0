"""The deciding half of an instance, in vLLM's scheduler process: keys, slot table, plans."""
