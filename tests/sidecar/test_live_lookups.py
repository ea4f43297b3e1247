"""What happens now, the latest lookups with why, and the page's files: what is told, and to whom."""

from __future__ import annotations

import random
import re
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instruments import Compass
from test_credentials import token

import semcache
from semcache.context import context
from semcache.events import Event
from semcache.ledger import Near
from semcache.model import Decision, Verdict
from semcache.sidecar import live as live_module
from semcache.sidecar.latencies import bucket, middle, quantiles
from semcache.sidecar.live import KINDS, Live
from semcache.sidecar.seen import Seen, last_text
from semcache.sidecar.why import counted, sentences, span

LIVE, LOOKUPS = "/semcache/v1/live", "/semcache/v1/lookups"
FOLDER = Path(live_module.__file__).parent / "dashboard"


@pytest.fixture
def live(clock):
    return Live(clock.time)


def hit(key=b"k", seen=None, **more):
    return Event("hit", "f", "", "memory", key, stages={"key": 1000, "memory": 3000}, seen=seen, **more)


def miss(key=b"k", **more):
    return Event("miss", "f", "", None, key, stages={"load": 2_000_000}, **more)


def rows(sidecar, **query):
    return sidecar.http.get(LOOKUPS, params=query).json()["lookups"]


# What is counted


def test_lookups_are_told_by_outcome_and_time_for_ten_minutes(live, clock):
    """Older ones are forgotten."""
    live(miss())
    clock.advance(60)
    live(hit())
    live(hit())
    clock.advance(10)
    told = live.told()
    assert {name: sum(values) for name, values in told["series"]["by"].items()} == {"miss": 1, "memory": 2}
    assert told["series"]["by"]["memory"][-3] == 2
    assert told["minute"] == {"memory": 2}
    clock.advance(live_module.SECONDS)
    live(miss())
    assert {name: sum(values) for name, values in live.told()["series"]["by"].items()} == {"miss": 1}


def test_faults_and_failed_loads_are_told(live):
    """Of lookups, and of what goes wrong away from them."""
    live(miss(failed=True, faults=[("redis", "timeout", "late")]))
    live(Event("fault", tier="redis", faults=[("redis", "lost", "x")]))
    by = live.told()["series"]["by"]
    assert (sum(by["fault redis"]), sum(by["error"]), sum(by["miss"])) == (2, 1, 1)


def test_every_hit_is_counted_however_many_come_in_a_second(live):
    """Though few of them are looked at."""
    seen = Seen("a", "text")
    for _ in range(10_000):
        live(hit(seen=seen))
    live(hit(seen=Seen("b", "another")))
    told = live.told()
    assert sum(told["series"]["by"]["memory"]) == 10_001
    assert {one["tenant"]: one["hits"] for one in told["callers"]}["b"] == 1
    assert 9_900 <= {one["tenant"]: one["hits"] for one in told["callers"]}["a"] <= 10_000
    assert {one["count"] for one in told["latencies"]} <= set(range(200, 600))


def test_what_is_kept_is_bounded(live, clock):
    """Whoever asks whatever."""
    dice = random.Random(1)
    for number in range(3000):
        clock.advance(dice.random())
        live(
            miss(b"%d" % number, reason=f"reason {'x' * (number % 40)}", model=f"m{number}", seen=Seen("t", "x" * 600))
        )
    told = live.told()
    assert len(told["callers"]) <= 201
    assert all(len(one["reasons"]) <= 3 for one in told["callers"])
    assert len(live.lookups(limit=500)) == 200
    assert len(live._counts) <= live_module.SECONDS + 1
    assert all(len(one.reasons) <= 13 for one in live._callers.values())


def test_lookups_that_are_kept_hold_no_call_and_no_answer(live):
    """Nor more of a text than is shown: both may be large, and hundreds are kept."""

    class Call:
        def identify(self, value):
            return "id"

    call = Call()
    gone, near = weakref.ref(call), Near("a" * 10_000, "b" * 10_000)
    live(Event("hit", "f", tier="semantic", similarity=0.95, identify=call.identify, near=near))
    del call
    assert gone() is None
    assert max(map(len, (live._noted[0][1].near.text, live._noted[0][1].near.neighbour))) == 600
    assert len(live.lookups()[0]["neighbour_text"]) == 280
    live(Event("bypass", "f", model="m" * 10_000, reason="off"))
    assert [len(live.lookups()[0]["model"]), len(live.told()["callers"][0]["model"])] == [200, 200]


def test_who_never_hits_is_told_first_with_why(live):
    """What is new each time, what was kept no more, and what went by."""
    for number in range(3):
        live(miss(b"%d" % number, model="new"))
        live(miss(b"same", model="gone"))
        live(Event("bypass", "f", reason="sampling: temperature 0.7", model="by"))
    live(miss(b"x", model="hits"))
    live(hit(model="hits"))
    told = {one["model"]: one for one in live.told()["callers"]}
    assert list(told)[-1] == "hits"
    assert told["new"]["reasons"] == [("asked for the first time", 3)]
    assert told["gone"]["reasons"] == [("asked before, and no longer kept", 2), ("asked for the first time", 1)]
    assert told["by"]["reasons"] == [("sampling: temperature", 3)]


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=200))
def test_quantiles_are_near(times):
    """Within an eighth of the exact one."""
    buckets = {}
    for one in times:
        buckets[bucket(one)] = buckets.get(bucket(one), 0) + 1
    (half,) = quantiles(buckets, [0.5])
    exact = sorted(times)[max(0, -(-len(times) // 2) - 1)]
    assert half * 1e6 == pytest.approx(exact, rel=0.125, abs=1)
    assert [bucket(one) for one in sorted(times)] == sorted(bucket(one) for one in times)
    assert all(bucket(int(middle(bucket(one)))) == bucket(one) for one in times)


# The latest lookups


def test_rare_kinds_stay_beside_many_hits(live):
    """Each kind has its own room."""
    live(miss(b"m"))
    live(Event("bypass", "f", reason="off"))
    for _ in range(1000):
        live(hit())
    kinds = {kind: len(live.lookups(kind=kind, limit=500)) for kind in KINDS}
    assert kinds == {"exact": 200, "near": 0, "miss": 1, "bypass": 1, "error": 0}
    numbers = [one["number"] for one in live.lookups(limit=500)]
    assert numbers == sorted(numbers, reverse=True)


def test_secrets_are_redacted_and_texts_cut(live):
    """In what was asked, in its neighbour, and in why."""
    secret = "sk-abcdefghijklmnop1234567890"
    live(miss(seen=Seen("t", f"my key is {secret} " + "x" * 600), reason=f"guard: identifiers differ ({secret} / b)"))
    (row,) = live.lookups()
    assert secret not in str(row)
    assert len(row["text"]) <= 280
    assert "[key:" in row["text"]
    assert live.lookups(search=secret) == []


def test_without_texts_none_is_told(clock):
    """Not in why either."""
    live = Live(clock.time, texts=False)
    decision = Decision(Verdict.REJECT, "guard: names differ (Berlin / Munich)", 0.93, 0.9, "names")
    live(miss(seen=Seen("t", ""), reason=decision.reason, decision=decision, similarity=0.93))
    (row,) = live.lookups()
    assert "Berlin" not in str(row)
    assert row["why"] == ["miss: guard: names (cosine 0.9300)"]


def test_tenant_of_the_context_is_whose_it_was(live):
    """As of embeddings, whose calls say it so; of a lookup that nobody says it of no tenant is told."""
    with context(tenant="acme"):
        live(miss())
    live(miss(b"other"))
    assert [row["tenant"] for row in live.lookups(reach=lambda tenant: tenant == "acme")] == ["acme"]


def test_dashboard_texts_can_be_switched_off(serve):
    """Then none is kept."""
    sidecar = serve(dashboard_texts=False)
    sidecar.chat("very private")
    sidecar.chat("very private")
    assert [row["text"] for row in rows(sidecar)] == ["", ""]


def test_lookups_tell_how_calls_were_answered(serve):
    """Kind, tier, why, stages, key and text; by search, kind and limit."""
    near = {"embedder": Compass({"a": 0, "b": 10}), "policy": semcache.Threshold(0.9, guards=None)}
    sidecar = serve(cache=near)
    sidecar.cache.warm()
    sidecar.chat("a")
    first = sidecar.chat("a")
    sidecar.chat("b")
    sidecar.chat("c", temperature=1)
    by, close, again, loaded = rows(sidecar)
    assert [one["kind"] for one in (by, close, again, loaded)] == ["bypass", "hit", "hit", "miss"]
    assert (close["tier"], close["similarity"], close["cut"]) == ("semantic", pytest.approx(0.985, abs=0.001), 0.9)
    assert (close["text"], close["neighbour_text"], close["neighbour"]) == ("b", "a", again["key"])
    assert again["key"] == first.headers["x-semcache-key"]
    assert by["why"] == ["went by the cache: sampling: temperature"]
    assert [one["text"] for one in rows(sidecar, search="semantic B")] == ["b"]
    assert [one["text"] for one in rows(sidecar, kind="bypass")] == ["c"]
    assert len(rows(sidecar, limit=2)) == 2
    assert sidecar.http.get(LOOKUPS, params={"kind": "no"}).status_code == 400


def test_tenants_token_is_told_of_its_own_lookups_alone(serve):
    """And of no sums."""
    tokens = [token(name, name, rights=["proxy", "read"]) for name in ("a", "ab")]
    sidecar = serve(tokens=(*tokens, token("op", "*", rights=["read"])))
    for name in ("a", "ab"):
        sidecar.chat(f"of {name}", headers={"x-semcache-token": name})
        sidecar.chat(f"by {name}", temperature=1, headers={"x-semcache-token": name})
        sidecar.post("/v1/embeddings", {"model": "e", "input": name}, headers={"x-semcache-token": name})

    def told(name):
        answer = sidecar.http.get(LOOKUPS, headers={"x-semcache-token": name})
        return {(row["tenant"].partition("/")[0], row["text"]) for row in answer.json()["lookups"]}

    assert told("a") == {("a", "of a"), ("a", "by a"), ("a", "")}
    assert len(told("op")) == 6
    assert sidecar.http.get(LIVE, headers={"x-semcache-token": "a"}).status_code == 403
    assert sidecar.http.get(LIVE, headers={"x-semcache-token": "op"}).status_code == 200
    assert sidecar.http.get(LOOKUPS).status_code == 401


def test_live_tells_what_the_page_shows(sidecar, models):
    """Without a text or a key."""
    sidecar.chat("very private")
    sidecar.chat("very private")
    models.fail(500)
    sidecar.chat("other")
    answer = sidecar.http.get(LIVE)
    told = answer.json()
    assert (told["mode"], told["state"], told["hits"], told["misses"]) == ("live", "ok", {"memory": 1}, 2)
    assert told["policy"]["kind"] == "shadow"
    assert [tier["name"] for tier in told["tiers"]] == ["memory"]
    assert told["saved"]["sums"]["saved_prompt_tokens"] > 0
    assert sum(told["series"]["by"]["error"]) == 1
    assert "private" not in answer.text


@pytest.mark.parametrize(
    ("policy", "kind"),
    [(None, "shadow"), (semcache.ErrorBudget(0.01), "budget"), (semcache.Threshold(0.9), "threshold")],
)
def test_live_tells_each_policy(serve, policy, kind):
    """What it is, and of one that learns what it lacks."""
    sidecar = serve(cache={"embedder": Compass(), "policy": policy})
    told = sidecar.http.get(LIVE).json()["policy"]
    assert told["kind"] == kind
    if kind == "budget":
        assert told["budget"] == 0.01
        assert told["wrong"]["share"] is None


# Why


def test_why_is_told_in_sentences():
    """Of each way to be answered."""
    near = Decision(Verdict.REUSE, "near enough", 0.95, 0.9)
    far = Decision.below(0.9, 0.8)
    told = {
        "the very call was answered before: its answer was in memory": hit(age=3.0, life=70.0),
        "loaded 3 s ago; it lives 70 s more": hit(age=3.0, life=70.0),
        "answered by a near match: its cosine is 0.9500, and a similarity is served from 0.9 on": Event(
            "hit", tier="semantic", similarity=0.95, decision=near
        ),
        "waited for the same call of another, which was being loaded": Event("hit", tier="flight", shared=True),
        "waited for the load of a near text: its cosine is 0.9500": Event("hit", tier="flight", similarity=0.95),
        "no tier has it, and nothing near: it was loaded": miss(),
        "no exact match; the nearest text has a cosine of 0.8000": miss(
            similarity=0.8, decision=far, reason=far.reason
        ),
        "no exact match; exact only: volatile words (today)": miss(reason="exact only: volatile words (today)"),
        "no match; it was loaded, and is not kept: refusal": miss(reason="not kept: refusal"),
        "its load failed, so nothing is kept": miss(failed=True),
        "went by the cache: sampling: temperature": Event("bypass", reason="sampling: temperature"),
        "loaded anew behind an answer that was served stale": Event("refresh"),
        "redis was passed over: timeout": miss(faults=[("redis", "timeout", "redis://me:secret@host")]),
    }  # fmt: skip
    for sentence, event in told.items():
        assert sentence in list(sentences(event)), event
        assert "secret" not in " ".join(sentences(event))


@pytest.mark.parametrize(
    ("reason", "few"),
    [
        ("guard: numbers differ (6 / 7)", "guard: numbers differ"),
        ("below the cut: similarity 0.8 < 0.9", "below the cut"),
        ("exact only: volatile words (today)", "exact only"),
        ("7", "other"),
    ],
)
def test_reasons_are_counted_by_few_words(reason, few):
    """Without what is of one call."""
    assert counted(miss(reason=reason), is_known=False) == few


def test_spans_are_told_as_people_say_them():
    """Of milliseconds to days."""
    assert [span(one) for one in (0.02, 3, 300, 9000, 300_000)] == ["20 ms", "3 s", "5 min", "2 h", "3 days"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"content": "a"}, {"content": "b"}]}, "b"),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}]}, "a b"),
        ({"input": "a"}, "a"),
        ({"input": ["a", "b"]}, "b"),
        ({"input": [1, 2]}, ""),
        ({"messages": 7}, ""),
        ({"messages": [{"content": None}]}, ""),
        ({"messages": [{"content": [None, {"text": 3}]}]}, ""),
        ({}, ""),
        ({"input": "x" * 900}, "x" * 600),
    ],
)
def test_last_text_of_any_body(body, text):
    """Whatever stands there."""
    assert last_text(body) == text


# The page


def test_page_forbids_itself_all_that_is_not_ours(sidecar):
    """And is asked for anew only where it has changed."""
    page = sidecar.http.get("/")
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="(semcache/static/[^"]+)"', page.text)
    assert len(named) == 3
    for path in named:
        found = sidecar.http.get(f"/{path}")
        assert found.status_code == 200
        assert found.headers["cache-control"] == "no-cache"
        again = sidecar.http.get(f"/{path}", headers={"if-none-match": found.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["none.js", "..%2Flive.py", "../live.py", "__init__.py", ""])
def test_nothing_but_the_pages_files_is_given(sidecar, name):
    """Wherever a path leads."""
    assert sidecar.http.get(f"/semcache/static/{name}").status_code == 404


def test_page_is_given_without_a_token(serve):
    """It has no data."""
    sidecar = serve(tokens=(token("op", "*", rights=["read"]),))
    assert sidecar.http.get("/").status_code == 200
    assert sidecar.http.get(LIVE).status_code == 401


def test_scripts_import_what_is_there_and_make_no_markup_of_text():
    """No inline script or style, no markup of strings, no other host."""
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert not re.search(r"""(?:src|href|from|fetch\()\s*=?\s*["']https?:""", text), path
        assert " style=" not in text
        assert len(text.splitlines()) <= 400
        for name in re.findall(r"from '\./([^']+)'", text):
            assert (FOLDER / name).is_file()


def test_what_is_no_unicode_breaks_nothing(sidecar):
    """Half a surrogate in a text and a model: JSON may hold one, and an answer in UTF-8 may not."""
    body = rb'{"model": "m\ud800", "messages": [{"role": "user", "content": "half \udfff"}]}'
    sidecar.post("/v1/chat/completions", body)
    for path in (LIVE, "/semcache/v1/stats", "/semcache/v1/usage"):
        assert sidecar.http.get(path).status_code == 200
    assert [(row["text"], row["model"]) for row in rows(sidecar)] == [("half \udfff", "m\ud800")]
