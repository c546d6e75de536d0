"""`/lookup?tokens=` or `text=`: who holds a prompt, chunk by chunk, the same as a command, and what
can be done with exactly that prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request
from nicegui import ui
from pydantic import ValidationError

from lmkv.core.messages import Lookup, LookupInfo, Submit
from lmkv.core.text import token_ids
from lmkv.core.tokens import OPERATE
from lmkv.web import models
from lmkv.web.errors import Problem, sentence
from lmkv.web.pages import commands
from lmkv.web.pages.acts import ON_PREFIX
from lmkv.web.pages.commands import IN_LINK
from lmkv.web.pages.dialog import Doing, Target
from lmkv.web.pages.frame import live
from lmkv.web.pages.text import NONE, count, escape, instance_link, percent, table

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

ROWS = 200  # chunks of which the holders are listed
SHADES = ("nobody", "one holder", "two", "three or more")
FORMS = {"tokens": "Token ids", "text": "Text", "messages": "Chat messages, as JSON"}
HINT = "Ctrl-enter looks it up. Text is put to an instance, which has the tokenizer."


def page(site: Site) -> None:
    @ui.page("/lookup")
    async def lookup(
        request: Request, tokens: str = "", text: str = "", salt: str = "", like: str = ""
    ) -> None:
        with site.frame(request, "Lookup") as frame:
            live("<h1>Who holds a prompt</h1>").classes("bare")
            with ui.element("section").classes("panel"):
                form = ui.radio(FORMS, value="text" if text else "tokens").props("inline dense")
                given = ui.textarea("Prompt", value=(tokens or text)[:IN_LINK], placeholder=HINT)
                given.props("outlined rows=4").style("width:100%")
                with ui.element("div").classes("find fields"):
                    salted = ui.input("Salt", value=salt[:4096]).props("outlined dense")
                    alike = ui.input("Like instance", value=like[:256]).props("outlined dense")
                    button = ui.element("button").classes("plain").props("type=button")
                    with button:
                        ui.label("Look up")
            line = live()
            acting = ui.element("section").classes("panel")
            acting.set_visibility(False)
            shown = live()
            doing = Doing(site, frame, request)

            async def find() -> None:
                line.content = shown.content = ""
                acting.set_visibility(False)
                asked = question(
                    form.value, given.value or "", salted.value or "", alike.value or ""
                )
                info = await site.view.lookup(asked)
                line.content = commands.line_html(commands.lookup(asked))
                shown.content = found_html(info)
                if info.keys and frame.may(OPERATE):
                    acting.clear()
                    with acting:
                        live("<h2>Do with exactly this prefix</h2>")
                        doing.bar(ON_PREFIX, target(asked, info))
                    acting.set_visibility(True)

            async def look_up() -> None:
                await frame.ask(find)

            async def too_long(told: Mapping[str, str]) -> None:
                text = f"prompt: {told.get('long', '')} characters are more than a page takes; put "
                raise Problem(413, "too_large", text + "them into a file: lmkv lookup @FILE")

            frame.acted(too_long)
            button.on("click", look_up)
            given.on("keydown.ctrl.enter", look_up)
            if tokens or text:
                ui.timer(0, look_up, once=True)  # an instance may take its time


def question(form: str, prompt: str, salt: str, like: str) -> Lookup:
    """Raises Problem, with REST's own limits."""
    fields: dict[str, Any] = {"salt": salt, "like": like}
    if form == "tokens":
        fields["tokens"] = numbers(prompt)
    elif form == "messages":
        try:
            fields["messages"] = json.loads(prompt)
        except (ValueError, RecursionError) as error:
            raise Problem(400, "json", f"messages: no JSON: {error}", "messages") from None
    else:
        fields["text"] = prompt
    try:
        body = models.Lookup(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise Problem(400, "field", sentence(field, dict(first)), field) from None
    if not body.given():
        raise Problem(400, "field", f"{form}: there are none", form)
    return Lookup(
        tokens=body.tokens, text=body.text, messages=body.chat(), salt=body.salt, like=body.like
    )


def numbers(text: str) -> list[int]:
    """Raises Problem. Brackets of a JSON list may stand around them."""
    try:
        return token_ids(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise Problem(400, "field", f"tokens: {error}", "tokens") from None


def target(asked: Lookup, info: LookupInfo) -> Target:
    """The same prompt again: its keys are made of it in the same way."""
    names = ("tokens", "text", "messages", "salt", "like")
    prompt = Submit(0, "", **{name: getattr(asked, name) for name in names})
    holders = sorted({name for names in info.holders for name in names})
    chunks = len(info.holders)
    return Target(prompt, holders, f"{chunks:,} chunk{'s' * (chunks != 1)} of a prompt")


def found_html(info: LookupInfo) -> str:
    return (
        f'<div class="split"><section class="panel">{_chunks(info)}</section>'
        f'<section class="panel">{_matched(info)}</section></div>'
    )


def _chunks(info: LookupInfo) -> str:
    strip = "".join(
        f'<i class="h{min(len(names), 3)}" title="{escape(_title(i, info, names))}"></i>'
        for i, names in enumerate(info.holders)
    )
    legend = "".join(
        f'<span class="key"><i class="h{n}"></i>{text}</span>' for n, text in enumerate(SHADES)
    )
    rows = [
        [f"{i:,}", f"{i * info.chunk_tokens:,}", ", ".join(map(instance_link, names)) or "nobody"]
        for i, names in enumerate(info.holders[:ROWS])
    ]
    heads = [("Chunk", "n"), ("From token", "n"), ("Holders", "rest")]
    chunks = len(info.holders)
    rest = info.tokens - chunks * info.chunk_tokens
    what = (
        f"{info.tokens:,} tokens: {chunks:,} chunks of {info.chunk_tokens}, and {rest} beside them"
    )
    more = f"<p>The first {ROWS} of {chunks:,} are listed.</p>" if chunks > ROWS else ""
    return (
        f'<h2>{what}</h2><div class="strip" role="img" aria-label="Chunks by their holders">{strip}'
        f'</div><p style="margin:8px 0">{legend}</p>'
        + table(heads, rows, "Too short: there is no whole chunk.", "Holders of each chunk")
        + more
    )


def _title(number: int, info: LookupInfo, names: list[str]) -> str:
    return f"chunk {number}, {info.keys[number][:8]}…: {', '.join(names) or 'nobody'}"


def _matched(info: LookupInfo) -> str:
    rows = [
        [instance_link(name), f"{matched:,}", percent(matched, info.tokens)]
        for name, matched in sorted(info.matched.items(), key=lambda each: (-each[1], each[0]))
    ]
    rows += [
        [instance_link(name), NONE, f"differs in {escape(differing)}"]
        for name, differing in sorted(info.incompatible.items())
    ]
    heads = [("Instance", "w"), ("Tokens from the start", "n"), ("Of the prompt", "n")]
    best = max(info.matched.values(), default=0)
    return f"<h2>At most {count(best)} tokens need not be computed</h2>" + table(
        heads, rows, "Nobody has its beginning.", "Matched tokens by instance"
    )
