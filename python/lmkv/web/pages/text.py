"""Numbers and tables as an operator reads them; all text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote, urlencode

__all__ = [
    "NONE",
    "act_button",
    "age",
    "count",
    "escape",
    "instance_link",
    "job_link",
    "link",
    "percent",
    "progress",
    "size",
    "table",
]

NONE = "-"


def count(number: float) -> str:
    """Three digits, and a letter for thousands."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}" if number < 99.95 and unit else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def size(number: float) -> str:
    """Bytes, by 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1000:
            return (
                f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
            )
        number /= 1024
    return f"{number:.1f} TiB"


def age(seconds: float) -> str:
    for most, unit, part in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return (
                f"{seconds / part:.1f} {unit}" if seconds < 10 else f"{seconds / part:.0f} {unit}"
            )
    return f"{seconds / 86_400:.0f} d"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else NONE


def link(path: str, text: str, **query: object) -> str:
    """Without what is empty."""
    given = urlencode({name: value for name, value in query.items() if value not in ("", None)})
    return f'<a href="{escape(path + ("?" + given if given else ""))}">{escape(text)}</a>'


def instance_link(name: str) -> str:
    return link(f"/instances/{quote(name, safe='')}", name)


def job_link(name: str) -> str:
    """Its first letters are enough to tell it from others."""
    return link(f"/jobs/{quote(name, safe='')}", name[:9])


def act_button(text: str, label: str = "", **told: str) -> str:
    """`Frame.acted` hears what is told. `label` is for who does not see the row that it is in."""
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in told.items())
    said = f' aria-label="{escape(label)}"' if label else ""
    return (
        f'<button type="button" class="plain small"{data}{said} onclick="lmkvAct(this)">'
        f"{escape(text)}</button>"
    )


def progress(part: float, whole: float) -> str:
    """A bar; without a whole it is not known how far it is."""
    if not whole:
        return '<span class="progress" role="progressbar"></span>'
    share = 100 * min(1.0, part / whole)
    return (
        f'<span class="progress" role="progressbar" aria-valuenow="{share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100"><i style="width:{share:.1f}%"></i></span>'
    )


def table(
    heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], empty: str, caption: str
) -> str:
    """`heads` are (HTML, class); cells are HTML. `empty` stands where there are no rows."""
    top = "".join(f'<th scope="col" class="{kind}">{head}</th>' for head, kind in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(row, heads))
        + "</tr>"
        for row in rows
    )
    body = body or f'<tr><td class="none" colspan="{len(heads)}">{escape(empty)}</td></tr>'
    return (
        f'<div class="scroll"><table><caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
