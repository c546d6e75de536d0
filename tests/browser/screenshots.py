"""`make screenshots`: pictures of every page, light and dark, for README.md and docs/dashboard.md.

python -m tests.browser.screenshots [FOLDER] [--seconds 320]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.browser.browser import CHROMIUM, Tab, chromium, tab
from tests.browser.lively import Lively, prompt
from tests.web import Web

ROOT = Path(__file__).resolve().parents[2]


def pictures(url: str, busiest: str, job: str) -> dict[str, str]:
    return {
        "overview": f"{url}/",
        "instances": f"{url}/instances?sort=hit_tokens&desc=1",
        "instance": f"{url}/instances/{busiest}",
        "lookup": f"{url}/lookup",
        "act": f"{url}/lookup",
        "jobs": f"{url}/jobs",
        "job": f"{url}/jobs/{job}",
        "pins": f"{url}/pins",
        "flow": f"{url}/flow?seconds=60",
    }


def work(web: Web, names: list[str], tokens: list[int]) -> str:
    """Jobs of all states: some are over, one is cancelled, one fails for want of room, and the one
    of which the id is answered runs for a while."""
    asked: list[dict[str, object]] = [
        {"operation": "pin", "tokens": tokens, "owner": "ops", "ttl_s": 7200},
        {"operation": "pin", "whole": True, "owner": "ops", "instance": names[1]},
        {"operation": "clear", "whole": True, "instance": names[-2]},
        {"operation": "copy", "whole": True, "source": names[1], "instance": names[-2]},
        {"operation": "copy", "whole": True, "source": names[0], "instance": names[-1]},
    ]
    ids = []
    for body in asked:
        answer = web.ask("/v1/jobs", body)
        assert answer.status == 202, answer
        ids.append(str(answer.json["id"]))
    web.ask(f"/v1/jobs/{ids[-2]}/cancel", method="POST")
    return ids[-1]


def take(shown: Tab, name: str, address: str, tokens: str, path: Path) -> None:
    page = shown.page
    page.goto(address)
    if name in ("lookup", "act"):
        page.get_by_label("Prompt").fill(tokens)
        page.get_by_role("button", name="Look up").click()
        shown.see("need not be computed")
        page.get_by_label("Prompt").evaluate("field => { field.scrollTop = 0; field.blur(); }")
    if name == "act":
        page.locator(".main").get_by_role("button", name="Move").click()
        page.locator(".act").get_by_label("To", exact=True).click()
        page.get_by_role("option").last.click()
    page.wait_for_timeout(3500)
    page.screenshot(path=str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description="Take pictures of the dashboard.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--seconds", type=float, default=320.0, help="of life before the first one")
    given = parser.parse_args()
    if CHROMIUM is None:
        print("no pictures: chromium is not installed (apt-get install chromium)", file=sys.stderr)
        return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    web = Web()
    web.up()
    lively = Lively(web.state)
    lively.begin()
    try:
        time.sleep(given.seconds)
        best = web.ask("/v1/instances?sort=hit_tokens&descending=true").json
        names = [each["instance"] for each in best["instances"]]
        tokens = ",".join(map(str, prompt()))
        with chromium() as browser:
            for colours in ("light", "dark"):
                job = work(web, names, prompt())
                with tab(browser, colours) as shown:
                    for what, address in pictures(web.http, names[0], job).items():
                        path = given.folder / f"{what}-{colours}.png"
                        take(shown, what, address, tokens, path)
                        print(f"{path} {path.stat().st_size >> 10} KiB")
    finally:
        lively.end()
        web.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
