"""What a page can do: each act with its sentence, its fields, what it needs, and its name typed in
where it takes something away.

    ACTS["move"].word(question, cluster)     # what must be typed before it is done
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmkv.core.messages import Submit
from lmkv.core.tokens import ADMIN, OPERATE
from lmkv.web.errors import Problem

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
LONGEST = 366 * 86_400.0  # seconds
INSTANCE, SOURCE, TTL, OWNER = "instance", "source", "ttl", "owner"


@dataclass(frozen=True)
class Act:
    name: str
    title: str
    says: str
    fields: tuple[str, ...] = ()
    job: bool = True  # else it is answered when it has ended
    destructive: bool = False

    def scope(self, question: Submit) -> str:
        """What it takes."""
        cluster = self.name == "clear" and question.whole and not question.instance
        return ADMIN if cluster else OPERATE

    def word(self, question: Submit, cluster: str) -> str:
        """What must be typed before it is done: who loses something by it; the cluster, where that
        is not one alone."""
        if not self.destructive:
            return ""
        loses = question.source if self.name == "move" else question.instance
        return loses or cluster


ACTS = {
    act.name: act
    for act in (
        Act(
            "pin", "Pin",
            "Its chunks are kept, whatever comes, until the time is over or the owner unpins.",
            (INSTANCE, TTL, OWNER),
        ),
        Act("unpin", "Unpin", "Its chunks may be retired again.", (INSTANCE, OWNER)),
        Act(
            "copy", "Copy", "An instance pulls its chunks from those that have them.",
            (INSTANCE, SOURCE),
        ),
        Act(
            "move", "Move",
            "An instance pulls its chunks and checks them; then the source retires them.",
            (INSTANCE, SOURCE), destructive=True,
        ),
        Act(
            "clear", "Clear", "Its chunks are retired: they are computed again when asked for.",
            (INSTANCE,), destructive=True,
        ),
        Act(
            "compress", "Compress", "Its chunks take less room, without loss; loads take longer.",
            (INSTANCE,),
        ),
        Act("decompress", "Decompress", "Its chunks are kept as they came.", (INSTANCE,)),
        Act(
            "sync", "Full sync", "The controller hears anew all that the instance holds.", job=False
        ),
        Act(
            "verify", "Verify",
            "The directory is compared with the slot table, and some slots with their digests.",
            job=False,
        ),
    )
}  # fmt: skip
ON_PREFIX = ("pin", "unpin", "copy", "move", "clear", "compress", "decompress")
ON_INSTANCE = (*ON_PREFIX, "sync", "verify")
PULLS = ("copy", "move")
PLACES = {name: "To" if name in PULLS else "At" for name in ON_PREFIX}
SAMPLE = 64  # slots that are digested again


def seconds(text: str) -> float:
    """`1h`, `90 min`, `30`; raises Problem."""
    text = text.strip()
    if not text:
        return 0.0
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(s|m|min|h|d|)", text)
    value = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < value <= LONGEST:
        said = f"ttl {text[:32]!r}: allowed is a time up to a year, as 30s, 10m, 1h or 7d"
        raise Problem(400, "field", said, "ttl")
    return value


def check(act: Act, question: Submit) -> None:
    """What can be known before anybody is asked; raises Problem."""
    if act.name == "pin" and not (question.ttl or question.owner):
        text = "ttl: a pin has a time at which it ends, or an owner who ends it, or both"
        raise Problem(400, "field", text, "ttl")
    if act.name in PULLS and not question.instance:
        raise Problem(400, "field", f"instance: a {act.name} names where it goes", "instance")
    if act.name in PULLS and question.instance == question.source:
        raise Problem(400, "field", "source: that is where it goes", "source")
