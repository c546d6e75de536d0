"""`make demo`: two real vLLM servers behind a load balancer, without lmkv and with it.

`model` makes the checkpoint, `manuals` the prompts, `processes` and `servers` start and end what
runs, `client` asks and reads `/metrics`, `scenes` is the story, `report` shows it.
"""
