"""Every message of lmkv, a file for each pair that talks.

A message is a tagged struct, MessagePack in a frame of its own; `core/wire.py` puts it there and
takes it out. Bulk arrays travel behind it as raw frames of equal counts, at most
`MAX_KEYS` items: keys (16 bytes each), places (8 bytes, `csrc/slots/place.h`), counters (u32,
little-endian). A docstring names the frames behind a message; without such a line there are none.

Rules for change: the tag is the message's name; new fields only with defaults; unknown fields are
ignored; a message that is declared and not served is answered `Unsupported` by name. Durations are
seconds unless the field's name says otherwise; times of day never travel.
"""

from __future__ import annotations

from typing import Union

from lmkv.core.messages.base import *
from lmkv.core.messages.jobs import *
from lmkv.core.messages.jobs import JobMessage
from lmkv.core.messages.mover import *
from lmkv.core.messages.mover import MoverMessage
from lmkv.core.messages.operations import *
from lmkv.core.messages.operations import OperationMessage
from lmkv.core.messages.queries import *
from lmkv.core.messages.queries import QueryMessage
from lmkv.core.messages.share import *
from lmkv.core.messages.share import ShareMessage
from lmkv.core.messages.state import *
from lmkv.core.messages.state import StateMessage
from lmkv.core.messages.supervision import *
from lmkv.core.messages.supervision import SupervisionMessage
from lmkv.core.messages.worker import *
from lmkv.core.messages.worker import WorkerMessage

AnyMessage = Union[
    StateMessage,
    QueryMessage,
    OperationMessage,
    JobMessage,
    WorkerMessage,
    MoverMessage,
    SupervisionMessage,
    ShareMessage,
]
