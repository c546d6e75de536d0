"""`lmkv config show | check | init | import`: settings, where they come from, and files of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmkv.cli.common import FAILED, USAGE, OutputOption, check_output, fail, print_json

if TYPE_CHECKING:
    from lmkv.core.config import Config

KINDS = ("instance", "controller")

config = typer.Typer(help="Settings: show, check, begin or import them.", no_args_is_help=True)

KindOption = Annotated[
    str,
    typer.Option("--for", metavar="KIND", help="instance (a vLLM server) or controller."),
]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="YAML.")]


def kind_of(word: str, option: str = "--for") -> type[Config]:
    from lmkv.core.config import ControllerConfig, InstanceConfig

    if word not in KINDS:
        fail(f"{option} {word!r}: allowed is {' or '.join(KINDS)}", USAGE)
    return InstanceConfig if word == "instance" else ControllerConfig


@config.command()
def show(
    whose: KindOption = "instance",
    file: Annotated[
        str, typer.Option("--config", metavar="FILE", help="Else what LMKV_CONFIG_FILE names.")
    ] = "",
    output: OutputOption = "table",
) -> None:
    """Settings as they are here, and whence each: a variable, the file, or the default."""
    from lmkv.core.config import ConfigError, as_text, names, read

    check_output(output)
    kind = kind_of(whose)
    try:
        found = read(kind, {"config": file} if file else None, inline_name="--config")
    except ConfigError as error:
        fail(str(error), FAILED)
    settings = {
        name: {"value": getattr(found, name), "origin": found.origins[name]} for name in names(kind)
    }
    if output == "json":
        print_json(settings)
        return
    from lmkv.cli.tables import console, table

    rows = [[name, as_text(name, each["value"]), each["origin"]] for name, each in settings.items()]
    console().print(table(("setting", "value", "from"), rows))


@config.command()
def check(
    file: FileArgument,
    whose: Annotated[
        str, typer.Option("--for", metavar="KIND", help="Else whose settings most of them are.")
    ] = "",
    output: OutputOption = "table",
) -> None:
    """Every problem of a file, a line each."""
    from lmkv.core.config import ConfigError, problems, read_file

    check_output(output)
    if whose:
        kind_of(whose)
    try:
        body = read_file(file)
    except ConfigError as error:
        found = [str(error)]
    else:
        whose = whose or _likely(body)
        found = problems(kind_of(whose), body, file)
    if output == "json":
        print_json({"file": file, "for": whose, "problems": found})
    else:
        for line in found:
            typer.echo(line)
    if found:
        raise typer.Exit(FAILED)
    if output == "table":
        typer.echo(f"{file} is right for a{'n' if whose == 'instance' else ''} {whose}", err=True)


def _likely(body: dict[str, Any]) -> str:
    """Whose settings most of the file's names are; an instance's where that is a draw."""
    from lmkv.core.config import names

    known = {whose: len(set(body) & set(names(kind_of(whose)))) for whose in KINDS}
    return max(KINDS, key=lambda whose: known[whose])


START = {
    "instance": """\
# Settings of a vLLM server: LMKV_CONFIG_FILE=FILE vllm serve MODEL --kv-transfer-config
#   '{"kv_connector": "LmkvConnector", "kv_role": "kv_both"}'
""",
    "controller": """\
# Settings of a controller: lmkv controller --config FILE
""",
}
RULES = """\
# All are optional: each line has the default, and what is allowed. Each is also LMKV_<NAME> in the
# environment, which wins over the file. Check the file with: lmkv config check FILE"""


@config.command()
def init(
    whose: Annotated[
        str, typer.Argument(metavar="KIND", help="instance (a vLLM server) or controller.")
    ] = "instance",
    output: OutputOption = "table",
) -> None:
    """Print a file to begin with: every setting with its default, commented out."""
    from lmkv.core import config_words
    from lmkv.core.config import allowed, as_text, load, names

    check_output(output)
    kind = kind_of(whose, "KIND")
    default = load(kind)
    words = config_words.INSTANCE if whose == "instance" else config_words.CONTROLLER
    if output == "json":
        fields = {
            name: {
                "default": getattr(default, name),
                "allowed": allowed(kind, name),
                "text": words[name],
            }
            for name in names(kind)
        }
        print_json(fields)
        return
    typer.echo(START[whose] + RULES)
    for name in names(kind):
        typer.echo(f"\n# {words[name]}")
        value = as_text(name, getattr(default, name))
        typer.echo(f"#{name}: {value}  # {allowed(kind, name)}")


@config.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="LMCache's YAML file.", show_default=False)
    ] = "",
    env: Annotated[
        bool, typer.Option("--env", help="Also LMCACHE_* in the environment, which win.")
    ] = False,
    output: OutputOption = "table",
) -> None:
    """An instance's settings from LMCache's: YAML to stdout, a line for each key to stderr.

    The exit status is 1 when a key is refused or unknown: what it asked for is not done.
    """
    import os

    from lmkv.cli import lmcache
    from lmkv.core.config import ConfigError, as_text, read_file

    check_output(output)
    if not file and not env:
        fail("FILE: LMCache's YAML file, or --env for its variables", USAGE)
    try:
        body = read_file(file) if file else {}
    except ConfigError as error:
        fail(str(error), FAILED)
    verdicts = lmcache.imported(body | (lmcache.from_environment(os.environ) if env else {}))
    settings = lmcache.settings(verdicts)
    if output == "json":
        keys = [{"key": each.key, "verdict": each.verdict, "text": each.text} for each in verdicts]
        print_json({"settings": settings, "keys": keys})
    else:
        for name, value in settings.items():
            typer.echo(f"{name}: {as_text(name, value)}")
        for key, verdict, text, *_ in verdicts:
            typer.echo(f"{key}: {verdict}, {text}", err=True)
    refused = any(each.verdict in (lmcache.REFUSED, lmcache.UNKNOWN) for each in verdicts)
    if refused:
        raise typer.Exit(FAILED)
