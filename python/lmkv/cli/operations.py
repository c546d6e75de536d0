"""`lmkv pin | unpin | copy | move | clear | compress | decompress`: a job each, which is followed
to its end unless `--no-wait`.

A function here has an operation's own options; `_command` puts those around it that all have.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    FAILED,
    JOB_DEADLINE,
    USAGE,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    check_text,
    duration,
    fail,
    print_json,
)
from lmkv.cli.prompts import (
    KeysOption,
    LikeOption,
    LoraOption,
    MessagesOption,
    ModelOption,
    SaltOption,
    TextArgument,
    TokensOption,
    check_size,
    check_texts,
    one_form,
    read_keys,
    read_messages,
    read_text,
    read_tokens,
)

if TYPE_CHECKING:
    from lmkv.core.messages import JobState

InstanceOption = Annotated[
    str,
    typer.Option("--instance", metavar="INSTANCE", help="There; without it at every holder."),
]
WholeOption = Annotated[
    bool, typer.Option("--whole", help="All that the instance holds, instead of a prompt.")
]
FromOption = Annotated[
    str, typer.Option("--from", metavar="INSTANCE", help="The source; without it any holder.")
]
ToOption = Annotated[str, typer.Option("--to", metavar="INSTANCE", help="The target.")]
OwnerOption = Annotated[str, typer.Option("--owner", metavar="NAME", help="Whose pin it is.")]
IdOption = Annotated[
    str,
    typer.Option(
        "--id", metavar="KEY", help="Idempotency key: the same again is the job that there is."
    ),
]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Until the job has ended, or only been taken.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Without being asked.")]


class Asked(NamedTuple):
    """What all commands are told."""

    option: str  # by which the prompt is given
    keys: bytes
    fields: dict[str, Any]  # of Submit
    wait: bool
    controller: str
    output: str


def _asked(
    text: TextArgument = "",
    tokens: TokensOption = "",
    chat: MessagesOption = "",
    keys: KeysOption = "",
    whole: WholeOption = False,
    like: LikeOption = "",
    model: ModelOption = "",
    salt: SaltOption = "",
    lora: LoraOption = "",
    key: IdOption = "",
    wait: WaitOption = True,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> Asked:
    check_output(output)
    given = {"TEXT": text, "--tokens": tokens, "--messages": chat, "--keys": keys}
    option = one_form({**given, "--whole": whole})
    check_texts(text=text, like=like, model=model, salt=salt, lora=lora, id=key)
    fields = {
        "id": key,
        "whole": whole,
        "tokens": read_tokens(tokens),
        "text": read_text(text),
        "messages": read_messages(chat),
        "salt": salt,
        "lora": lora,
        "like": like,
        "model": model,
    }
    return Asked(option, read_keys(keys), fields, wait, controller, output)


def _command(run: Callable[..., None]) -> Callable[..., None]:
    """`run(asked, its own options)` as a command with all of them."""
    own = list(inspect.signature(run).parameters.values())[1:]
    hints = get_type_hints(run, include_extras=True) | get_type_hints(_asked, include_extras=True)

    def command(**given: Any) -> None:
        mine = {each.name: given.pop(each.name) for each in own}
        run(_asked(**given), **mine)

    shared = list(inspect.signature(_asked).parameters.values())
    merged = [*shared[:5], *own, *shared[5:]]
    parameters = [each.replace(annotation=hints[each.name]) for each in merged]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    return command


@_command
def pin(
    asked: Asked,
    instance: InstanceOption = "",
    ttl: Annotated[str, typer.Option(metavar="TIME", help="For so long: 30s, 5m, 2h, 1d.")] = "",
    owner: OwnerOption = "",
) -> None:
    """Keep a prompt's chunks until a time, or until their owner unpins them."""
    if not ttl and not owner:
        fail("pin: give --ttl, or --owner who unpins it", USAGE)
    seconds = duration("--ttl", ttl) if ttl else 0.0
    _run("pin", asked, instance=instance, ttl=seconds, owner=owner)


@_command
def unpin(asked: Asked, instance: InstanceOption = "", owner: OwnerOption = "") -> None:
    """End the pins of a prompt's chunks, or only those of an owner."""
    _run("unpin", asked, instance=instance, owner=owner)


@_command
def copy(asked: Asked, source: FromOption = "", instance: ToOption = "") -> None:
    """Copy a prompt's chunks to an instance, each verified by its digest."""
    _pull("copy", asked, source, instance)


@_command
def move(asked: Asked, source: FromOption = "", instance: ToOption = "") -> None:
    """Copy a prompt's chunks to an instance, and then give them up where they were."""
    _pull("move", asked, source, instance)


@_command
def clear(asked: Asked, instance: InstanceOption = "", yes: YesOption = False) -> None:
    """Give up a prompt's chunks, or with --whole all of the instance, or of all instances.

    What is pinned stays. Asks first, unless --yes.
    """
    if not yes:
        _confirm(instance or ("all" if asked.fields["whole"] else "clear"))
    _run("clear", asked, instance=instance)


@_command
def compress(asked: Asked, instance: InstanceOption = "") -> None:
    """Store a prompt's chunks compressed, without loss, so that more of them have room."""
    _run("compress", asked, instance=instance)


@_command
def decompress(asked: Asked, instance: InstanceOption = "") -> None:
    """Store a prompt's chunks as they are again."""
    _run("decompress", asked, instance=instance)


COMMANDS = (pin, unpin, copy, move, clear, compress, decompress)


def _pull(operation: str, asked: Asked, source: str, target: str) -> None:
    if not target:
        fail(f"{operation}: give --to, the instance to which it goes", USAGE)
    if asked.fields["whole"] and not source:
        fail(f"{operation}: give --from, the instance that --whole means", USAGE)
    _run(operation, asked, instance=target, source=source)


def _confirm(word: str) -> None:
    """Whoever clears means it."""
    if not sys.stdin.isatty():
        fail("clear: there is no terminal to ask at; --yes says that it is meant", USAGE)
    said = typer.prompt(f"This gives up what is cached. Type {word} to go on", err=True)
    if said != word:
        fail(f"{said!r} is not {word}: nothing was done", USAGE)


def _run(operation: str, asked: Asked, **more: Any) -> None:
    from lmkv.cli.follow import follow
    from lmkv.core.messages import JobInfo, Submit

    names = {"instance": "--instance", "source": "--from", "owner": "--owner"}
    for name, option in names.items():
        check_text(option, more.get(name, ""))
    message = Submit(1, operation, asked_by=_asker(), **asked.fields, **more)
    frames = [asked.keys] if asked.keys else []
    check_size(asked.controller, asked.option, message, *frames)
    job = ask(asked.controller, message, JobInfo, *frames, deadline=JOB_DEADLINE).job
    end(follow(asked.controller, job) if asked.wait else job, asked.output)


def _asker() -> str:
    """Who asks, by this machine's word for it."""
    import getpass

    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError):
        return ""


def end(job: JobState, output: str) -> None:
    """What became of it, and the command's status."""
    if output == "json":
        print_json(job)
    else:
        from lmkv.cli.job_tables import sentence
        from lmkv.cli.tables import console

        console().print(sentence(job))
    if job.state in ("failed", "cancelled"):
        raise typer.Exit(FAILED)
