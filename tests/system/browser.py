"""A real browser: Debian's Chromium, headless, driven by Playwright; and sidecars that it looks at, in this process.

Laws: a page that says an error, breaks its own policy or asks another host fails its test, unless that expects it.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "sidecar"))

from instruments import GUARD, Compass
from proxies import Running

import semcache
from semcache.sidecar.settings import Server, Settings
from semcache.testing import StandIn
from semcache.tier import SystemClock

NEAR = {"embedder": Compass({"enable alarms": 0, "turn alarms on": 10, "close my account": 90})}


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of a module: its client keeps a loop running in this thread, which others may need."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "there is no chromium: `make test-system` unpacks one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong in it; `expects` are parts of what may be said."""

    def __init__(self, page, url, expects):
        self.page = page
        self._url = url
        self._expects = expects
        self.wrong = []
        page.set_default_timeout(GUARD * 1000)
        page.on("console", lambda said: self._note(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else self._note(request.url))

    def _note(self, told):
        if not any(part in told for part in self._expects):
            self.wrong.append(told)

    def open(self):
        self.page.goto(f"{self._url}/")
        return self.page


@pytest.fixture
def look(chromium):
    """Open the dashboard of a sidecar as somebody with such a screen and such tastes."""
    opened = []
    with ExitStack() as stack:

        def open_one(sidecar, *, expects=(), ready=True, before=None, **tastes):
            context = chromium.new_context(**tastes)
            stack.callback(context.close)
            watched = Watched(context.new_page(), sidecar.url, expects)
            opened.append(watched)
            if before is not None:
                before(watched.page)
            page = watched.open()
            if ready:
                page.wait_for_selector("#state.good")
            return page

        yield open_one
    assert [wrong for watched in opened for wrong in watched.wrong] == []


@pytest.fixture
def behind():
    with StandIn() as server:
        yield server


@pytest.fixture
def serve(open_cache, behind):
    """Start sidecars with near matches of 0.9 and more, on the machine's clock, as a page's is."""
    with ExitStack() as stack:

        def start(cache=None, **settings):
            near = NEAR | {"policy": semcache.Threshold(0.9, guards=None), "clock": SystemClock(), "ttl": None}
            made = Settings(**({"upstream": (Server(behind.url),), "port": 0} | settings))
            running = Running(made, open_cache(**(near | (cache or {}))))
            running.cache.warm()
            stack.callback(running.close)
            return running

        yield start
