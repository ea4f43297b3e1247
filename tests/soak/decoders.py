"""What reads of callers and owners, given bytes that a fuzzer chooses: atheris where there is one, else Hypothesis.

Each target reads bytes, and may raise what it is documented to raise and nothing else; what it returns is checked where
there is something to check. A case that was found is written down, and is handed to its target by

    python tests/soak/decoders.py 0 TARGET FILE
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

_LONGEST = 4096


def body(data):
    """A posted body: an object of JSON, each name once, or ValueError."""
    from semcache.keys import canonical
    from semcache.sidecar.asked import parsed

    with suppress(ValueError, RecursionError):
        told = parsed(data)
        assert isinstance(told, dict)
        again = parsed(json.dumps(told).encode())
        try:
            key = canonical(told)
        except (TypeError, RecursionError):  # what has no key goes by
            return
        assert canonical(again) == key


def wishes(data):
    """Headers that ask for something, or UnclearWishError."""
    from semcache.sidecar.wishes import UnclearWishError, wishes_of

    names = (b"cache-control", *(b"x-semcache-" + name for name in (
        b"ttl", b"mode", b"tags", b"tenant", b"threshold", b"namespace", b"nonsense")))  # fmt: skip
    told = [(names[line[0] % len(names)], line[1:]) for line in data.split(b"\n") if line]
    with suppress(UnclearWishError):
        found = wishes_of(told)
        assert found.ttl is None or found.ttl > 0
        assert -1 <= found.least <= 1
        assert found.oldest >= 0
        assert "/" not in found.tenant
        assert not any("," in tag for tag in found.tags)


def headers(data):
    """Headers sorted by what they are: each of one kind, and who asks, or UnknownCallerError."""
    from semcache.sidecar.credentials import PROOFS, Credentials, UnknownCallerError
    from semcache.sidecar.headers import Sorter, given, sent

    told = []
    for line in data.split(b"\n"):
        name, _, value = line.partition(b":")
        told.append((name.lower(), value))
    kinds = Sorter().of(told)
    assert all(name in PROOFS for name, _ in kinds.proofs)
    assert not {name for name, _ in kinds.keyed} & PROOFS
    assert len(kinds.keyed) + len(kinds.proofs) + len(kinds.wishes) <= len(told)
    given(told)
    credentials = Credentials((), "secret")
    with suppress(UnknownCallerError):
        caller = credentials.of(kinds.proofs)
        assert caller.tenant.startswith("key-") or caller.tenant == "nobody"
        out = sent(told, credentials.keys_of(caller, told))
        assert not any(name.startswith(b"x-semcache-") for name, _ in out)


def settings(data):
    """A file of settings, or ConfigurationError in one message without a secret."""
    from semcache.errors import ConfigurationError
    from semcache.sidecar.settings import read

    with tempfile.NamedTemporaryFile(suffix=".toml", dir=_memory()) as file:
        file.write(data)
        file.flush()
        with suppress(ConfigurationError):
            told = read(None, {"SEMCACHE_CONFIG": file.name, "SEMCACHE_UPSTREAM": "http://a"}).told()
            assert isinstance(told, str)


def asked(data):
    """A request of the service: its body and query as a row takes them, or RefusedError."""
    from semcache.sidecar.refusals import RefusedError
    from semcache.sidecar.service import Table, _query, _read

    rows = _rows.setdefault("rows", [row for row in Table().rows if row.body is not None or row.query is not None])
    row, rest = rows[data[0] % len(rows) if data else 0], data[1:]
    with suppress(RefusedError):
        if row.body is None:
            _query(row, rest)
            return
        try:
            from semcache.sidecar.asked import parsed

            told = parsed(rest.decode())
        except (ValueError, RecursionError):
            return
        _read(row.body, told)


def pages(data):
    """What a browser says of where it comes from, or RefusedError."""
    from semcache.sidecar.doors import Doors
    from semcache.sidecar.refusals import RefusedError

    host, _, origin = data.partition(b"\n")
    scope = {"headers": [(b"host", host), (b"origin", origin)], "server": ("127.0.0.1", 1), "method": "POST"}
    for doors in (Doors("a.example", is_local=True, has_tokens=False), Doors("", is_local=False, has_tokens=False)):
        for check in (doors.check_call, doors.check_service):
            with suppress(RefusedError):
                check(scope)
                assert not origin.endswith(b"evil.example") or not doors._is_open


_rows = {}


def message(data):
    """An operation of a program: a request and an entry as they are read, or DecodeError."""
    from msgpack import unpackb

    from semcache.errors import DecodeError
    from semcache.stores.wire import entry_of, request_of

    try:
        told = unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError):
        return
    for read in (request_of, entry_of):
        with suppress(DecodeError):
            read(told)


TARGETS = {one.__name__: one for one in (body, wishes, headers, settings, asked, pages, message)}
SEEDS = {
    "body": [b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}', b'{"a": 1e9, "b": "\\ud800"}'],
    "wishes": [b"\x00max-age=60, no-cache\n\x0110m\n\x02live\n\x03a, b\n\x050.9"],
    "headers": [b"authorization: Bearer a\nx-semcache-token: b\ncookie: c\nx-vendor: d\nconnection: x-vendor"],
    "settings": [b'port = 1\nhosts = "a"\n[ttl]\nredis = "1d"\n[[upstream]]\nurl = "http://a"\nmodels = ["b*"]\n'
                 b'[[token]]\nsha256 = "' + b"0" * 64 + b'"\ntenant = "*"\nrights = ["read"]\n'],
    "asked": [b'\x00{"tag": "a"}', b"\x01since=30d&by=stage", b'\x02{"key": "' + b"0" * 40 + b'"}'],
    "message": [
        b"\x82\xa3key\xc4\x14" + b"k" * 20 + b"\xa6facets\x96\xa1f\xa0\xa0\xa0\x90\x90",
        b"\x83\xa5value\xc4\x01a\xa4born\x01\xa5lives\x96" + b"\xcb" + bytes(8) + b"\x00" * 5,
    ],
    "pages": [b"127.0.0.1:8400\nhttp://127.0.0.1:8400", b"[::1]:1\nhttp://localhost", b"evil.example\nhttp://evil.example"],
}  # fmt: skip


def _memory():
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def fuzz(name, seconds):
    """Fuzz one target for some seconds, in a process of its own, as the fuzzer ends its own."""
    with tempfile.TemporaryDirectory(prefix="semcache-corpus-") as folder:
        for place, seed in enumerate(SEEDS[name]):
            (Path(folder) / f"seed-{place}").write_bytes(seed)
        found = Path(__file__).parents[2] / ".cache" / "soak"
        found.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(seconds), name, folder, f"{found}/{name}-"]
        ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        told = [line for line in ended.stdout.decode(errors="replace").splitlines() if not line.startswith("INFO")]
        units = [line.split()[-1] for line in told if "executed_units" in line]
        print(f"  {name}: {f'{int(units[0]):,} cases' if units else ''}", flush=True)
        if ended.returncode:
            print(*told[-40:], sep="\n    ")
        return ended.returncode


def run_atheris(name, seconds, folder, found):
    with atheris.instrument_imports(
        include=["semcache.sidecar", "semcache.keys", "semcache.ttl"], enable_loader_override=False
    ):
        import semcache.sidecar.doors
        import semcache.sidecar.operating
        import semcache.sidecar.settings  # noqa: F401
    arguments = [sys.argv[0], folder, f"-max_total_time={seconds}", f"-max_len={_LONGEST}", "-timeout=10",
                 f"-artifact_prefix={found}", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


def run_hypothesis(name, seconds):
    import time

    from hypothesis import HealthCheck, given, settings, strategies

    deadline, number = time.monotonic() + seconds, 0
    near = [strategies.just(seed) for seed in SEEDS[name]]
    cut = strategies.sampled_from(SEEDS[name]).flatmap(
        lambda seed: strategies.builds(
            lambda at, put: seed[:at] + put + seed[at:],
            strategies.integers(0, len(seed)),
            strategies.binary(max_size=9),
        )
    )
    while time.monotonic() < deadline:
        number += 1

        @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategies.one_of(strategies.binary(max_size=_LONGEST), cut, *near))
        def test(data):
            TARGETS[name](data)

        test()
    print(f"stat::number_of_executed_units: {number * 500}")


def main(arguments):
    seconds = int(arguments[0])
    if len(arguments) == 3:  # a case that was found
        TARGETS[arguments[1]](Path(arguments[2]).read_bytes())
        return 0
    if len(arguments) == 4:
        _, name, folder, found = arguments
        if atheris is None:
            run_hypothesis(name, seconds)
        else:
            run_atheris(name, seconds, folder, found)
        return 0
    print(f"by {'Hypothesis, as there is no atheris here' if atheris is None else 'atheris'}", flush=True)
    share = max(5, seconds // len(TARGETS))
    failed = [name for name in TARGETS if fuzz(name, share)]
    if failed:
        print(f"found something: {', '.join(failed)}; the cases are in .cache/soak")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
