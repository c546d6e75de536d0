"""The dialog in which something is done: what it does, its fields, the same as a command and as a
request, a name to type where it takes something away, and what came of it.

    doing = Doing(site, frame, request)
    await doing.open(ACTS["pin"], Target(question))     # on a prompt
    doing.choose("a")                                   # what can be done with an instance
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import Request
from msgspec.structs import replace
from nicegui import ui

from lmkv.core.client import Unreachable
from lmkv.core.messages import Instances, Submit, SyncResult, VerifyResult
from lmkv.core.tokens import OPERATE
from lmkv.web.errors import Problem
from lmkv.web.pages import acts, commands
from lmkv.web.pages.acts import ACTS, INSTANCE, ON_INSTANCE, OWNER, PULLS, SOURCE, TTL, Act
from lmkv.web.pages.frame import Frame, live
from lmkv.web.pages.text import escape, job_link

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

LISTED = 250  # instances to choose from; others are typed
DEADLINE = 30.0  # seconds that an instance may take
LABELS = {SOURCE: "From", TTL: "For", OWNER: "Owner"}


@dataclass
class Target:
    """What it is done to: the prompt of `question`, an instance, or (neither) the cluster.
    `holders` have some of it. What `question` says already is no field any more."""

    question: Submit
    holders: Sequence[str] = ()
    says: str = ""

    @staticmethod
    def whole(instance: str = "") -> Target:
        says = f"all of {instance}" if instance else "the whole cluster"
        return Target(Submit(0, "", instance=instance, whole=True), says=says)


class Doing:
    def __init__(self, site: Site, frame: Frame, request: Request) -> None:
        self._site = site
        self._frame = frame
        self._root = str(request.base_url).rstrip("/")
        self._fields: dict[str, Any] = {}
        with ui.dialog() as self._dialog:
            self._card = ui.element("div").classes("act")

    def bar(self, names: Sequence[str], target: Target, title: str = "") -> None:
        """A button for each."""
        with ui.element("div").classes("find"):
            for act in map(ACTS.__getitem__, names):
                opened = partial(self.open, act, target)
                button(title or act.title, opened, act.destructive)

    def choose(self, instance: str) -> None:
        """What can be done with an instance."""
        self._card.clear()
        with self._card:
            live(f"<h2>{escape(instance)}</h2>").classes("bare")
            if self._frame.may(OPERATE):
                self.bar(ON_INSTANCE, Target.whole(instance))
            line = shlex.join(["lmkv", "describe", "instance", instance])
            live(commands.line_html(line, "Command line"))
            button("Close", self._dialog.close)
        self._dialog.open()

    async def open(self, act: Act, target: Target) -> None:
        question, known = target.question, target.holders
        if act.name in PULLS:
            if question.whole:  # the instance is where it comes from
                question = replace(question, instance="", source=question.instance)
                target = Target(question, says=target.says)
            known = [name for name in await self._instances() if name != question.source]
        self._act, self._target, self._key = act, target, secrets.token_hex(8)
        self._card.clear()
        with self._card:
            live(f"<h2>{act.title}: {escape(target.says)}</h2><p>{act.says}</p>").classes("bare")
            self._fields = self._made(known)
            self._word = live().classes("bare")
            self._typed = ui.input(on_change=self._told).props("outlined dense autocomplete=off")
            self._typed.props('aria-label="Its name, to go on"')
            self._lines = live()
            self._said = live().props("role=alert")
            with ui.element("div").classes("find"):
                self._start = button(act.title, self._started, act.destructive)
                button("Close", self._dialog.close)
        self._told()
        self._dialog.open()

    def _made(self, known: Sequence[str]) -> dict[str, Any]:
        """The fields that there are: what the target does not say; the cluster needs none."""
        act, question = self._act, self._target.question
        found: dict[str, Any] = {}
        everywhere = question.whole and not (question.instance or question.source)
        names = [] if everywhere else [n for n in act.fields if not getattr(question, n)]
        with ui.element("div").classes("find"):
            for name in names:
                if name == INSTANCE:
                    anywhere = "" if act.name in PULLS else "every holder"
                    found[name] = self._select(acts.PLACES[act.name], anywhere, known)
                elif name == SOURCE:
                    found[name] = self._select("From", "whoever has it", self._target.holders)
                else:
                    hint = "1h" if name == TTL else ""
                    found[name] = ui.input(LABELS[name], placeholder=hint, on_change=self._told)
                found[name].props("outlined dense")
        return found

    def _select(self, label: str, anywhere: str, known: Sequence[str]) -> ui.select:
        """One of those that are known, or another one that is typed."""
        options = {"": anywhere} if anywhere else {}
        options |= {name: name for name in known}
        return ui.select(
            options,
            label=label,
            value="" if anywhere else None,
            with_input=True,
            new_value_mode="add-unique",
            key_generator=lambda name: name,
            on_change=self._told,
        )

    async def _instances(self) -> list[str]:
        try:
            found = await self._site.view.instances(Instances(limit=LISTED))
        except (Unreachable, Problem):
            return []  # it is typed, then, and what is wrong is said when it is done
        return [each.instance for each in found.instances if each.state != "dead"]

    # ------------------------------------------------------------ what is asked for

    def _question(self) -> Submit:
        """As the fields have it. Raises Problem."""
        given = {name: str(field.value or "").strip() for name, field in self._fields.items()}
        changed: dict[str, Any] = {n: given[n] for n in (INSTANCE, SOURCE, OWNER) if n in given}
        if TTL in given:
            changed["ttl"] = acts.seconds(given[TTL])
        return replace(self._target.question, operation=self._act.name, id=self._key, **changed)

    def _told(self) -> None:
        """What the fields say now, in words for elsewhere."""
        try:
            question = self._question()
        except Problem as problem:
            self._say(problem.message)
            return
        self._say("")
        status = self._site.watch.status
        word = self._act.word(question, status.cluster if status else "")
        self._typed.set_visibility(bool(word))
        self._word.content = f"<p>To go on, type <b>{escape(word)}</b>:</p>" if word else ""
        if self._act.job:
            line = commands.operation(question)
            address, sent = "/v1/jobs", commands.body(question)
        else:
            name = question.instance
            option = ["--instance"] if self._act.name == "verify" else []
            line = shlex.join(["lmkv", self._act.name, *option, name])
            address, sent = f"/v1/instances/{quote(name, safe='')}/{self._act.name}", None
        curl = commands.request(self._root + address, sent, self._site.tokens.wanted)
        self._lines.content = commands.line_html(line, "Command line") + commands.line_html(
            curl, "Request"
        )
        self._wanted = word

    def _say(self, text: str) -> None:
        self._said.content = f'<p class="why">{escape(text)}</p>' if text else ""

    # ------------------------------------------------------------ what is done

    async def _started(self) -> None:
        self._start.props("disabled")
        self._say("")
        try:
            self._said.content = f"<p>{await self._done()}</p>"
        except Unreachable:
            self._say("The controller does not answer.")
        except Problem as problem:
            self._say(problem.message)
        else:
            return
        self._start.props(remove="disabled")

    async def _done(self) -> str:
        """What came of it, as HTML."""
        question = self._question()
        acts.check(self._act, question)
        question.asked_by = self._frame.need(self._act.scope(question))
        if self._wanted and self._typed.value != self._wanted:
            text = f"name {self._typed.value!r}: to go on it must be {self._wanted!r}"
            raise Problem(400, "field", text, "name")
        view = self._site.view
        if self._act.job:
            info = await view.submit(question)
            return f"Job {job_link(info.job.id)} is {escape(info.job.state)}."
        where, deadline = question.instance, DEADLINE
        if self._act.name == "sync":
            return _synced(await view.command(where, "sync", SyncResult, deadline=deadline))
        arguments = {"sample": str(acts.SAMPLE)}
        return _verified(await view.command(where, "verify", VerifyResult, arguments, deadline))


def button(
    text: str, clicked: Callable[[], Awaitable[None] | None], danger: bool = False
) -> ui.element:
    made = ui.element("button").classes("plain danger" if danger else "plain")
    with made.props("type=button"):
        ui.label(text)
    made.on("click", clicked)
    return made


def _synced(found: SyncResult) -> str:
    return (
        f"{found.keys_before:,} chunks before, {found.keys_after:,} after. Mended: "
        f"{found.missing:,} missing, {found.moved:,} moved, {found.gone:,} gone."
    )


def _verified(found: VerifyResult) -> str:
    return (
        f"{found.keys:,} chunks in the directory, {found.slots:,} slots: {found.missing:,} "
        f"missing, {found.moved:,} moved, {found.gone:,} gone. Of {found.sampled:,} slots that "
        f"were digested again, {found.wrong:,} were wrong."
    )
