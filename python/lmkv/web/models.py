"""What REST takes and gives, as OpenAPI has it. Answers have the names of `core/messages/`.

Durations are seconds, except where a name ends in `_ms`. An epoch is 16 hex digits, since it has
more bits than JavaScript's numbers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

TOKENS = 1 << 20  # of a prompt
PROMPTS = 64  # of a batch
CHARACTERS = 1 << 20  # of a text
MESSAGES = 1024

Epoch = Annotated[
    int,
    PlainSerializer(lambda number: f"{number:016x}", return_type=str, when_used="json"),
]
Token = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
Text = Annotated[str, Field(max_length=4096)]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Answer):
    code: str = Field(description="stable, for programs")
    message: str = Field(description="one sentence, for people")
    field: str = Field(description="what of the request is wrong, or empty")


class Error(Answer):
    error: ErrorDetail


# ---------------------------------------------------------------- the cluster


class Cluster(Answer):
    cluster: str
    controller: str
    epoch: Epoch
    state: str = Field(description="ready or warming")
    version: str
    uptime: float
    keys: int
    directory_bytes: int
    locates: int
    locate_keys: int
    located_keys: int
    drifts: int
    resyncs: int
    syncs: int = Field(description="that run or wait")
    syncs_waiting: int
    protocol_min: int
    protocol_max: int
    heartbeats: int
    announced_keys: int
    retracted_keys: int
    bad_messages: int
    lag: float = Field(description="the age of the oldest heartbeat of those that are not dead")
    max_frame_bytes: int
    states: dict[str, int] = Field(description="instances by state")
    hit_tokens: dict[str, int] = Field(description="by cause, since the controller began")
    miss_tokens: dict[str, int]
    pool_granules: dict[str, int] = Field(description="by state, of all pools")
    retired_ages: list[int] = Field(
        description="slots retired for room, by age: up to 1, 5, 15, 60, 300, 900, 3600, 14400 and "
        "86400 seconds, and above"
    )
    retired_seconds: float = Field(description="the sum of these ages")
    peer_bytes: int = Field(description="that came from one instance to another")
    versions: dict[str, int] = Field(description="instances that are not dead, by their release")
    jobs: dict[str, int] = Field(description="that are remembered, by state")
    jobs_ended: dict[str, int] = Field(description="since the controller began, by state")
    job_bytes: dict[str, int] = Field(description="that jobs moved or freed, by operation")
    pins: int


class Instance(Answer):
    instance: str
    epoch: Epoch
    state: str = Field(description="live, suspect, dead, syncing or incompatible")
    model: str
    serving_url: str
    dp_rank: int
    ranks: int
    keys: int
    heartbeat_age: float
    pullable: bool
    version: str
    data_version: int
    differs: str = Field(description="the field in which it differs from differs_from")
    differs_from: str = Field(description="the first instance of its model")
    running: int
    waiting: int
    load: float
    retired_age: float = Field(
        description="median age of slots as they were retired for room, from above; 0: none was"
    )
    bytes_in: int = Field(description="that came to it from others in the last 5 minutes")
    bytes_out: int = Field(description="that others took of it in that time")
    hit_tokens: dict[str, int]
    miss_tokens: dict[str, int]
    pool_granules: dict[str, int]


class InstancesPage(Answer):
    instances: list[Instance]
    next: str = Field(
        description="`after` of the next page; empty on the last one, and where sort is given"
    )
    total: int = Field(description="that the filter lets through")


class Pair(Answer):
    source: str
    target: str
    bytes: int


class Flow(Answer):
    seconds: float = Field(description="that are looked back; fewer than asked for at first")
    bytes: int = Field(description="of all pairs")
    pairs: int
    flows: list[Pair] = Field(description="most bytes first")


class Controller(Answer):
    controller: str
    address: str = Field(description="at which it was asked")
    epoch: Epoch
    state: str = Field(description="ready, warming or unreachable: of that one nothing is known")
    version: str
    uptime: float
    keys: int
    directory_bytes: int
    instances: int
    syncs: int
    drifts: int
    resyncs: int
    lag: float


class Controllers(Answer):
    controllers: list[Controller]


class Prefix(Answer):
    key: str
    model: str
    tokens: int
    hits: float = Field(description="locates that ended here; one counts half 10 minutes later")
    copies: int
    holders: list[str] = Field(description="the first 16")


class Prefixes(Answer):
    prefixes: list[Prefix]


class Event(Answer):
    """The data of a server-sent event."""

    kind: str
    instance: str
    text: str
    age: float = Field(description="seconds, when it was sent")
    job: str = Field(default="", description="its id, where kind is job")


class Health(Answer):
    status: str


class Version(Answer):
    version: str
    protocol_min: int
    protocol_max: int
    isa: str


# ---------------------------------------------------------------- operations


class Synced(Answer):
    instance: str
    keys_before: int = Field(description="chunks of it in the directory when the sync began")
    keys_after: int
    missing: int = Field(description="chunks that the directory lacked")
    moved: int = Field(description="chunks that it had elsewhere")
    gone: int = Field(description="chunks that it had and the instance had not")
    seconds: float


class Verify(Body):
    sample: int = Field(default=64, ge=0, le=1 << 20, description="slots that are digested again")


class Differing(Answer):
    key: str
    how: str = Field(description="missing, moved, gone; or digest, header: a slot of the pool")
    rank: int = Field(description="of a slot of the pool")


class Verified(Answer):
    instance: str
    keys: int = Field(description="chunks of it in the directory")
    slots: int = Field(description="in its slot table, at the same moment")
    missing: int
    moved: int
    gone: int
    sampled: int = Field(description="slots that were digested again, in every rank")
    wrong: int = Field(description="of those, by rank")
    differing: list[Differing] = Field(description="the first 256 of each kind")


class Setting(Answer):
    name: str
    value: bool | int | float | str | list[str] | None = Field(
        description="null: lmkv decides itself"
    )
    origin: str = Field(description="a variable, a file, inline, or default")
    used: str = Field(description="what a value that was left open came to, or empty")


class Settings(Answer):
    settings: list[Setting]


class WhyEntry(Answer):
    request: str
    tokens: int = Field(description="of its prompt")
    matched: int = Field(description="of those, not computed")
    hit_tokens: dict[str, int]
    miss_tokens: dict[str, int]
    peers: dict[str, int] = Field(description="tokens by the peer that brought them")
    pull_ms: float = Field(description="that it waited for pulls")
    age: float
    differs: str = Field(description="the field, where a cause is incompatible")
    opted_out: str


class Why(Answer):
    requests: list[WhyEntry] = Field(description="newest first")
    kept: int = Field(description="an instance remembers so many")


# ---------------------------------------------------------------- prompts


class ChatMessage(Body):
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Annotated[str, Field(max_length=CHARACTERS)]
    name: Text = ""


class Prompt(Body):
    """One of `tokens`, `text` and `messages`. Text is put to an instance of the model, which has
    the tokenizer and the chat template."""

    tokens: list[Token] = Field(default=[], max_length=TOKENS)
    text: str = Field(default="", max_length=CHARACTERS)
    messages: list[ChatMessage] = Field(default=[], max_length=MESSAGES)
    salt: Text = Field(default="", description="the request's cache_salt")
    lora: Text = Field(default="", description="the name that requests have it by")

    def given(self) -> list[str]:
        """The names of the forms in which there is a prompt."""
        return [name for name in ("tokens", "text", "messages") if getattr(self, name)]

    def chat(self) -> list[dict[str, str]]:
        return [message.model_dump(exclude_defaults=True) for message in self.messages]


class Lookup(Prompt):
    keys: list[Key] = Field(default=[], max_length=4096, description="instead of tokens")
    like: Text = Field(default="", description="the instance whose keys are meant")
    model: Text = Field(default="", description="may be left out where all share alike")


class Found(Answer):
    chunk_tokens: int
    tokens: int = Field(description="of the prompt; 0 where keys were given")
    keys: list[str] = Field(description="hex, one a chunk")
    holders: list[list[str]] = Field(description="instances that have the chunk, one list a chunk")
    matched: dict[str, int] = Field(description="tokens of the whole prefix, by instance")
    incompatible: dict[str, str] = Field(
        description="other instances of the model, and the field that keeps them from sharing"
    )


class Locate(Prompt):
    """One prompt, or several as `prompts`."""

    model: Text = Field(default="", description="may be left out where all serve the same")
    prompts: list[Prompt] | None = Field(default=None, min_length=1, max_length=PROMPTS)
    limit: int = Field(default=16, ge=1, le=1000, description="candidates a prompt")


class Candidate(Answer):
    instance: str
    url: str = Field(description="its serving URL, or empty")
    dp_rank: int
    tokens: int = Field(description="of the prompt's prefix that it has")
    load: float
    fresh_ms: float = Field(description="the age of what is known of it")


class Candidates(Answer):
    candidates: list[Candidate]


class Located(Candidates):
    """`candidates` of the one prompt, most tokens first, then least load; or `prompts`, in their
    order."""

    prompts: list[Candidates] | None = None
