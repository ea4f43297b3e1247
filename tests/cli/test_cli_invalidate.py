"""`semcache invalidate`: what goes, what it says, and what it refuses."""

from __future__ import annotations

import pytest
from instruments import GUARD

from semcache.testing import StandIn

FACETS = {
    "tag": "faq", "tenant": "acme", "function": "answers.ask", "model": "large", "version": "v7", "document": "terms",
}  # fmt: skip


@pytest.fixture
def models():
    with StandIn() as made:
        yield made


@pytest.fixture
def service(open_service, store):
    """A service whose store has an answer with every facet, and one with none."""
    import semcache

    cache = open_service(**store)
    with semcache.context(documents=["terms"]):
        marked = cache.request(
            "marked", tags="faq", tenant="acme", function="answers.ask", model="large", version="v7"
        )  # fmt: skip
    plain = cache.request("plain")
    cache.get_or_load(marked, lambda: "answer")
    cache.get_or_load(plain, lambda: "answer")
    assert cache.flush(GUARD)
    return cache, marked, plain


def stands(cache, request):
    cache.memory.clear()
    return cache.get_or_load(request, lambda: "new") == "answer"


@pytest.mark.parametrize("facet", [*FACETS, "key"])
def test_what_has_the_facet_goes_and_is_counted(service, told, typed, facet):
    """One answer goes, the other stays, and a dry run changes nothing."""
    cache, marked, plain = service
    value = marked.key.hex() if facet == "key" else FACETS[facet]
    would = told("invalidate", f"--{facet}", value, *typed, "--dry-run")
    assert would == {
        "namespace": "tests", "facet": facet, "value": value, "entries": 1, "is_dry_run": True
    }  # fmt: skip
    assert stands(cache, marked)
    assert told("invalidate", f"--{facet}", value, *typed)["entries"] == 1
    assert not stands(cache, marked)
    assert stands(cache, plain)


def test_everything_is_the_namespace(service, semcache_command, typed, open_service, store):
    """--everything drops the namespace and no other; it says so in one line."""
    cache, marked, plain = service
    other = open_service("other", **store)
    request = other.request("theirs")
    other.get_or_load(request, lambda: "answer")
    assert other.flush(GUARD)
    status, out, err = semcache_command("invalidate", "--everything", *typed)
    assert (status, err) == (0, "")
    assert out.startswith("dropped 2 entries: namespace 'tests' in ")
    assert out.count("\n") == 1
    assert not stands(cache, marked)
    assert not stands(cache, plain)
    assert stands(other, request)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "one of the arguments --tag --tenant"),
        (["--tag", "a", "--model", "b"], "not allowed with argument"),
        (["--tag", "a", "--everything"], "not allowed with argument"),
        (["--tenant", "a", "--tag", "b"], "not allowed with argument --tag"),
        (["--tenant", "a", "--everything"], "not allowed with argument --everything"),
        (["--key", "xyz"], "a key is bytes or their 40 hex digits"),
        (["--tag", ""], "tag= is text"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(semcache_command, service, typed, options, why):
    """Exactly one facet, and a value that can be one."""
    status, out, err = semcache_command("invalidate", *options, *typed)
    assert (status, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_what_could_not_be_kept_is_status_1(semcache_command, own_redis, how):
    """A store that is gone, or silent, is told with status 1, in one line without the password."""
    server = own_redis(password="secret")
    getattr(server, "kill" if how == "killed" else "pause")()
    status, out, err = semcache_command("invalidate", "--tag", "a", "--namespace", "tests", "--redis", server.url)
    assert (status, out) == (1, "")
    assert err.startswith("semcache: redis://127.0.0.1:")
    assert err.count("\n") == 1
    assert "secret" not in err


def test_invalidation_that_is_refused_is_status_1(semcache_command, own_redis):
    """A server that can be asked and keeps nothing: it says that nothing was invalidated."""
    server = own_redis(args=["--maxmemory", "100mb"])
    server.cli("SET", "theirs", "x")
    assert semcache_command("mode", "--namespace", "tests", "--redis", server.url)[0] == 0
    server.cli("CONFIG", "SET", "maxmemory", "1")
    status, out, err = semcache_command("invalidate", "--tag", "a", "--namespace", "tests", "--redis", server.url)
    assert (status, out) == (1, "")
    assert err.startswith("semcache: not invalidated durably, try again: redis://127.0.0.1:")
    assert "its memory is full" in err
    assert err.count("\n") == 1


@pytest.mark.semantic
def test_what_is_near_to_a_text_goes(open_service, store, told, typed):
    """With the service's model a text means all that is near to it; the others stay."""
    cache = open_service(**store, embedder="all-MiniLM-L6-v2")
    cache.warm()
    near = cache.request(text="How do I return a parcel?", function="f")
    other = cache.request(text="When do you open on Sundays?", function="f")
    for request in (near, other):
        cache.get_or_load(request, lambda: "answer")
    assert cache.flush(GUARD)
    asked = ("invalidate", "--text", "How can I return a parcel?", "--embedder", "all-MiniLM-L6-v2", *typed)
    assert told(*asked, "--dry-run")["entries"] == 1
    assert told(*asked)["entries"] == 1
    assert told(*asked, "--similarity", "-1", "--dry-run")["entries"] == 1
    assert stands(cache, other)
    cache.close()


@pytest.fixture
def shared_by_tenants(open_service, store, models):
    """A service in which two tenants, and one who is none, have asked nearly the same."""
    cache = open_service(**store, embedder=models.openai_url)
    cache.warm()
    for tenant in ("acme", "zenith", None):
        cache.get_or_load(cache.request(text="Where is my parcel?", tenant=tenant), lambda: "answer")
    assert cache.flush(GUARD)


@pytest.mark.semantic
@pytest.mark.usefixtures("shared_by_tenants")
def test_text_of_a_tenantmeans_that_tenants_alone(semcache_command, told, typed, models):
    """--tenant narrows --text; without it the line says that answers of tenants are among them, and what helps."""
    asked = ("invalidate", "--text", "Where is my parcel?", "--embedder", models.openai_url, *typed)
    status, out, _ = semcache_command(*asked, "--dry-run")
    assert status == 0
    assert out.startswith("would drop 3 entries: text ")
    assert out.endswith("; 2 of them are of tenants: --tenant NAME means one's alone\n")
    done = told(*asked, "--tenant", "acme")
    assert (done["entries"], done["facet"], done["tenant"]) == (1, "text", "acme")
    assert "tenant 'zenith' in namespace" in semcache_command(*asked, "--tenant", "zenith")[1]
    assert semcache_command(*asked)[1].startswith("dropped 1 entry: ")


@pytest.mark.parametrize(
    ("options", "mend"),
    [(["--text", "a"], "--embedder MODEL"), (["--tag", "a", "--similarity", "0.5"], "--text"),
     (["--tag", "a", "--embedder", "m"], "--text"), (["--text", "a", "--tag", "b"], "not allowed with")],
)  # fmt: skip
def test_text_wants_a_model_and_nothing_else_does(semcache_command, typed, options, mend):
    """What does not go together is said in one line."""
    status, out, err = semcache_command("invalidate", *options, *typed)
    assert (status, out) == (2, "")
    assert mend in err


def test_option_given_twice_is_refused(semcache_command, typed):
    """The second would silently take the first one's place."""
    status, out, err = semcache_command("invalidate", "--tag", "a", "--tag", "b", *typed)
    assert (status, out) == (2, "")
    assert "given twice" in err


def test_nothing_dropped_asks_for_the_name(service, semcache_command, typed):
    """A mistyped name drops nothing, and says so."""
    assert "is it the right name?" in semcache_command("invalidate", "--tag", "none", *typed)[1]
