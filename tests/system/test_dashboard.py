"""The dashboard in a real browser: what it shows, what its buttons do, and who is shown what."""

from __future__ import annotations

import pytest
from browser import behind, chromium, look, serve  # noqa: F401 - fixtures
from instruments import GUARD
from proxies import told
from test_credentials import token

import semcache

pytestmark = pytest.mark.system

TOKENS = {
    "tokens": (
        token("op", "*", rights=["read", "admin"]),
        token("shop", "shop", rights=["proxy", "read", "admin"]),
        token("desk", "desk", rights=["proxy"]),
    )
}


@pytest.fixture
def sidecar(serve):  # noqa: F811 - a fixture
    return serve()


def expect(page, selector, text):
    """Wait until an element says a text."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=GUARD * 1000)


def rows(page, number):
    """Wait for so many lookups in the table; returns the texts of their rows."""
    from playwright.sync_api import expect

    expect(page.locator("#rows tr.lookup")).to_have_count(number, timeout=GUARD * 1000)
    return page.locator("#rows tr.lookup").all_inner_texts()


def opened(page, place=0):
    """Open a lookup, and return what lies below it."""
    page.locator("button.open").nth(place).click()
    return page.locator("tr.details").first


def test_page_shows_what_happens_while_it_happens(sidecar, look):  # noqa: F811
    """Figures, charts and rows change as calls come; nothing is said to be wrong, and no other host is asked."""
    sidecar.chat("enable alarms")
    page = look(sidecar)
    assert len(rows(page, 1)) == 1
    expect(page, "#tiles", "0 of 1 lookup in the last minute")
    sidecar.chat("enable alarms")
    sidecar.chat("turn alarms on")
    sidecar.chat("close my account", temperature=1)
    found = rows(page, 4)
    assert [next(word for word in ("memory", "near match", "loaded", "went by") if word in row) for row in found] == [
        "went by", "near match", "memory", "loaded",
    ]  # fmt: skip
    expect(page, "#tiles", "66.7%")
    expect(page, "#rate-told", "near match 33.3%")
    expect(page, "#outcomes", "near match")
    expect(page, "#tiers", "semantic")
    expect(page, "#policy", "fixed cut")
    for chart in ("#rate path", "#flow path", "#waterfall svg"):
        assert page.locator(chart).count() > 0


def test_search_and_kind_narrow_the_lookups(sidecar, look):  # noqa: F811
    """Each word is to be found in what a lookup tells."""
    for text in ("enable alarms", "turn alarms on", "close my account"):
        sidecar.chat(text)
    page = look(sidecar)
    rows(page, 3)
    page.fill("#search", "ACCOUNT close")
    assert "close my account" in rows(page, 1)[0]
    page.fill("#search", "nowhere")
    rows(page, 0)
    expect(page, "#none", "None of the latest lookups is like that")
    page.fill("#search", "")
    page.select_option("#kind", "near")
    assert "turn alarms on" in rows(page, 1)[0]


def test_lookup_tells_why_and_what_was_wrong_is_not_served_again(sidecar, look):  # noqa: F811
    """A second press reports it: the next call of that text is loaded."""
    sidecar.chat("enable alarms")
    assert told(sidecar.chat("turn alarms on")) == "hit"
    page = look(sidecar)
    rows(page, 2)
    details = opened(page)
    why = details.inner_text()
    assert "its cosine is 0.9848, and a similarity is served from 0.9 on" in why
    assert "enable alarms" in why
    wrong = details.get_by_role("button", name="This was wrong")
    wrong.click()
    details.get_by_role("button", name="Press again").click()
    expect(page, "tr.details [role=status]", "is not served to")
    assert told(sidecar.chat("turn alarms on")) == "miss"


def test_blast_radius_and_invalidation_of_a_lookups_answer(sidecar, look):  # noqa: F811
    """Who else was given it; and after it is dropped everywhere it is loaded anew."""
    sidecar.chat("enable alarms")
    sidecar.chat("turn alarms on")
    page = look(sidecar)
    rows(page, 2)
    details = opened(page, 1)
    details.get_by_role("button", name="Blast radius").click()
    expect(page, "tr.details [role=status]", "given as a near match 1 time in seven days")
    expect(page, "tr.details [role=status]", "turn alarms on")
    details.get_by_role("button", name="What stands now").click()
    expect(page, "tr.details [role=status]", "memory: ")
    details.get_by_role("button", name="Invalidate").click()
    assert told(sidecar.chat("enable alarms")) == "hit"  # once is not twice
    details.get_by_role("button", name="Press again").click()
    expect(page, "tr.details [role=status]", "dropped, everywhere")
    assert told(sidecar.chat("enable alarms")) == "miss"


def test_kill_switch_wants_two_presses(sidecar, look):  # noqa: F811
    """Then calls go by, until it is switched back."""
    sidecar.chat("enable alarms")
    page = look(sidecar)
    expect(page, "#mode-now", "mode live")
    page.click("#mode")
    switch = page.locator("#mode-switch")
    switch.click()
    expect(page, "#mode-switch", "Press again: all replicas to off")
    assert told(sidecar.chat("enable alarms")) == "hit"
    switch.click()
    expect(page, "#mode-now", "mode off")
    assert told(sidecar.chat("enable alarms")) == "bypass"
    page.click("#mode")
    page.check("input[value=live]")
    switch.click()
    switch.click()
    expect(page, "#mode-now", "mode live")
    assert told(sidecar.chat("enable alarms")) == "hit"


def test_token_is_asked_for_and_a_wrong_one_is_told(serve, look):  # noqa: F811
    """It stays in the tab, and can be forgotten."""
    sidecar = serve(**TOKENS)
    page = look(sidecar, expects=["401"], ready=False)
    page.wait_for_selector("#token-dialog[open]")
    assert not page.is_visible("#sums")
    page.fill("#token", "another")
    page.keyboard.press("Enter")
    expect(page, "#token-wrong", "none that this sidecar knows")
    page.fill("#token", "op")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state.good")
    assert page.is_visible("#sums")
    page.reload()
    page.wait_for_selector("#state.good")
    page.click("#forget")
    page.wait_for_selector("#token-dialog[open]")


def test_tenants_token_is_shown_its_own_lookups_alone(serve, look):  # noqa: F811
    """No sums, no switch, and no other tenant's rows."""
    sidecar = serve(**TOKENS)
    sidecar.chat("of the shop", headers={"x-semcache-token": "shop"})
    sidecar.chat("of the desk", headers={"x-semcache-token": "desk"})
    page = look(sidecar, expects=["401", "403"], ready=False)
    page.fill("#token", "shop")
    page.keyboard.press("Enter")
    assert "of the shop" in rows(page, 1)[0]
    expect(page, "#own", "one tenant's")
    assert not page.is_visible("#sums")
    assert not page.is_visible("#mode")
    page.fill("#search", "desk")
    rows(page, 0)


def test_text_with_markup_stays_text(sidecar, look):  # noqa: F811
    """As a call's text, model and tag of itself."""
    evil = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    sidecar.chat(evil, model=f"m{evil}")
    page = look(sidecar)
    rows(page, 1)
    assert evil in opened(page).inner_text()
    assert page.locator("main img, main script").count() == 0
    assert "owned" not in page.title()


def test_keyboard_alone_reaches_and_does_everything(sidecar, look):  # noqa: F811
    """A lookup is opened and reported, and the mode switched, without a pointer; dialogs take the focus and give it."""
    sidecar.chat("enable alarms")
    sidecar.chat("turn alarms on")
    page = look(sidecar)
    rows(page, 2)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "open":
            break
    for name in ("skip", "theme", "mode", "frame", "search", "kind", "follow", "open"):
        assert name in reached, reached
    page.keyboard.press("Enter")
    page.wait_for_selector("tr.details")
    for _ in range(2):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("This was wrong"):
            break
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page, "tr.details [role=status]", "is not served to")
    page.focus("#mode")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('dialog')?.id") == "mode-dialog"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "mode"
    page.focus("#rate .frame")
    read = []
    while "near match" not in "".join(read) and len(read) < 24:  # five seconds each
        page.keyboard.press("ArrowLeft")
        read.append(page.inner_text("#rate .readout"))
    assert "1 lookup" in "".join(read) or "2 lookups" in "".join(read), read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_no_scrolling_sideways(sidecar, look, scheme):  # noqa: F811
    """At 390 pixels, with a lookup open; in the colours that its owner likes."""
    sidecar.chat("enable alarms " + "w" * 300)
    page = look(sidecar, viewport={"width": 390, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    rows(page, 1)
    opened(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    (red, green, blue) = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red + green + blue < 200) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.getElementById('mode')).transitionDuration") == "0s"


def test_theme_can_be_chosen(sidecar, look):  # noqa: F811
    """And is kept."""
    page = look(sidecar, color_scheme="light")
    page.click("#theme")
    page.click("#theme")
    expect(page, "#theme", "Theme: dark")
    page.reload()
    expect(page, "#theme", "Theme: dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_page_says_when_the_sidecar_is_gone_and_goes_on_when_it_is_back(serve, look):  # noqa: F811
    """By itself."""
    sidecar = serve()
    page = look(sidecar, expects=["Failed to load resource"])
    port = int(sidecar.url.rpartition(":")[2])
    sidecar.close()
    expect(page, "#gone", "No answer from the sidecar since")
    expect(page, "#state", "gone")
    serve(port=port)
    page.wait_for_selector("#state.good")
    assert not page.is_visible("#gone")


def test_hidden_page_asks_nothing(sidecar, look):  # noqa: F811
    """And asks again when it is looked at."""
    asked = []

    def before(page):
        page.clock.install()
        page.on("request", lambda request: asked.append(request.url))

    page = look(sidecar, before=before)
    hide = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(hide % "true")
    del asked[:]
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_request("**/live"):
        page.evaluate(hide % "false")


@pytest.mark.parametrize(
    ("policy", "tile", "told"),
    [
        (semcache.ErrorBudget(0.05), "budget 5.0%", "all other families together"),
        (None, "no budget is set", "a budget of 1.0%"),
    ],
)
def test_policy_tells_labels_had_and_needed(serve, look, policy, tile, told):  # noqa: F811
    """Of a budget, and in shadow what each would serve."""
    sidecar = serve(cache={"policy": policy})
    sidecar.chat("enable alarms")
    sidecar.chat("turn alarms on")
    page = look(sidecar)
    expect(page, "#tiles", tile)
    expect(page, "#policy", told)
