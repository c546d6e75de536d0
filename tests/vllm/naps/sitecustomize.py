"""On the path of engines with several ranks: their waits nap.

vLLM's ranks wait in a loop around `sched_yield`. Where they are more than the cores, Linux 6.18
then runs nothing else there, not even kernel threads, for 1 to 31 s (seen: a process that only
sleeps got no time, its state R throughout). No deadline means anything in such a hole.
"""

import os
import time

os.sched_yield = lambda: time.sleep(0.0001)
