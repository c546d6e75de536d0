"""Not there, as on a machine that has a card and nothing else of lmkv's."""

raise ImportError("it is not there, for this test")
