"""The dashboard before a real engine: its text is looked up, pinned and unpinned by clicking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.browser import DEADLINE, Tab, chromium
from tests.browser.browser import tab as new_tab
from tests.browser.conftest import NEEDS
from tests.vllm.cluster import Cluster, hits
from tests.vllm.engine import Engine, Zygote
from tests.vllm.speaking import make_speaking_llama

TEXT = "Whoever asks twice is answered from the pool. " * 15  # 690 bytes, and <s>
CHUNKS = 2
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not all(NEEDS.values()),
        reason=f"not here: {', '.join(name for name, there in NEEDS.items() if not there)}",
    ),
]


@pytest.fixture(scope="module")
def cluster(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    model = make_speaking_llama(tmp_path_factory.mktemp("models") / "speaking")
    with Cluster(zygote, model, tmp_path_factory.mktemp("seen"), web=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def speaker(cluster: Cluster) -> Engine:
    engine = cluster.start("speaker", skip_tokenizer_init=False)
    cluster.wait_ready(engine)
    return engine


@pytest.fixture
def tab() -> Iterator[Tab]:
    with chromium() as browser, new_tab(browser) as made:
        yield made
        assert made.said == []
        assert len(made.asked) == 1, made.asked


def look_up(tab: Tab, cluster: Cluster, text: str) -> None:
    tab.page.goto(cluster.http + "/lookup")
    tab.page.wait_for_function("window.did_handshake === true")
    tab.page.get_by_text("Text", exact=True).click()
    tab.page.get_by_label("Prompt").fill(text)
    tab.page.get_by_role("button", name="Look up").click()


def act(tab: Tab, name: str, **fields: str) -> None:
    """By the dialog that `name` opens, to the end of its job."""
    tab.page.get_by_role("button", name=name, exact=True).first.click()
    dialog: Any = tab.page.locator(".act")
    dialog.get_by_role("heading", name=f"{name}: ").wait_for()
    for field, value in fields.items():
        dialog.get_by_label(field, exact=True).fill(value)
    dialog.get_by_role("button", name=name, exact=True).click()
    dialog.get_by_role("link").click()
    tab.page.wait_for_url("**/jobs/j*")
    tab.page.locator(".state.done").first.wait_for(timeout=2 * DEADLINE)


def test_a_text_is_looked_up_and_pinned(cluster: Cluster, speaker: Engine, tab: Tab) -> None:
    look_up(tab, cluster, TEXT)
    tab.see(f"{len(TEXT) + 1} tokens: {CHUNKS} chunks of 256")
    tab.see("Nobody has its beginning.")
    tokens = speaker.call("tests.vllm.speaking:text_tokens", TEXT)
    speaker.generate(tokens, max_tokens=1)
    cluster.settle(speaker)
    look_up(tab, cluster, TEXT)
    tab.see("At most 512 tokens need not be computed")
    assert speaker.call("tests.vllm.inside:state")["pending"]["pins"] == 0
    act(tab, "Pin", For="1h", Owner="ann")
    assert f"{CHUNKS} of {CHUNKS} chunks" in tab.text()
    assert speaker.call("tests.vllm.inside:state")["pending"]["pins"] == CHUNKS
    tab.page.goto(cluster.http + "/pins")
    row = tab.page.locator("tr", has_text="ann")
    assert row.locator("td").first.inner_text() == "speaker"
    assert row.locator("td").nth(4).inner_text() == str(CHUNKS)
    tab.page.goto(cluster.http + "/instances/speaker")
    tab.page.locator("tr", has_text="pinned").first.wait_for()
    tab.see("chunk_tokens")  # its settings, by its own word
    assert tab.page.locator("tr", has_text="instance_id").first.locator("td").nth(2).inner_text()
    hit = speaker.generate(tokens, max_tokens=1)
    assert hits(hit) == {"hit_pool": 512}
    look_up(tab, cluster, TEXT)
    act(tab, "Unpin", Owner="ann")
    assert speaker.call("tests.vllm.inside:state")["pending"]["pins"] == 0
    tab.page.goto(cluster.http + "/pins")
    tab.see("Nothing is pinned.")


def test_what_the_engine_cannot_tokenise_is_said(
    cluster: Cluster, speaker: Engine, tab: Tab
) -> None:
    look_up(tab, cluster, "\x7fELF\x00\x01" + "x" * 4000)
    tab.page.locator(".banner").wait_for()
    assert "2048" in tab.text(".banner")
