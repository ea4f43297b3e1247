"""Durations, sizes, and each tier's ttl and timeout: what is read, and what is refused with which mend."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ConfigurationError
from semcache.ttl import MEMORY_SECONDS, TTL, Timeouts, seconds, size_bytes


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (5, 5.0), (0.25, 0.25), ("5", 5.0), ("5s", 5.0), ("250ms", 0.25), ("5m", 300.0), ("1h", 3600.0), ("1d",
        86400.0),
        ("2w", 1209600.0), ("1.5h", 5400.0), (" 5 m ", 300.0), ("5M", 300.0), ("1D", 86400.0), ("0.5ms", 0.0005),
    ],
)  # fmt: skip
def test_duration_as_people_write_it_is_seconds(told, wanted):
    """A duration is a number of seconds, or text with a unit."""
    assert seconds(told) == pytest.approx(wanted)
    assert type(seconds(told)) is float


@pytest.mark.parametrize(
    "told",
    [
        0, -1, -0.5, "0", "-5m", "0s", math.nan, math.inf, -math.inf, 10**400, 1e10, "9" * 400, "9" * 5000 + "d", "1e3",
        "", " ", "m", "5x", "5 minutes", "5m5s", "1,5h", "5.m", ".5m", "٣m", "1\u212a", "five", None, True, False, [5],
        b"5m", 5j, object(),
    ],
)  # fmt: skip
def test_duration_that_is_none_is_refused_with_the_mend(told):
    """A negative, endless or unreadable duration is a ConfigurationError that tells how to write one."""
    with pytest.raises(ConfigurationError) as caught:
        seconds(told, "ttl of memory")
    message = str(caught.value)
    assert message.startswith("ttl of memory must be a positive number of seconds")
    assert '"250ms", "5m", "1h", "1d"' in message


def test_duration_of_the_longest_kind_can_be_waited_for():
    """No duration that is taken is too long for a thread to wait."""
    longest = seconds(9e9)
    assert longest < threading.TIMEOUT_MAX
    landed: Future[int] = Future()
    landed.set_result(1)
    assert landed.result(longest) == 1
    assert threading.Lock().acquire(timeout=longest)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (0, 0), (5, 5), ("0", 0), ("5", 5), ("5b", 5), ("64MB", 64_000_000), ("1kb", 1000), ("1KiB", 1024), ("512MiB",
        2**29),
        ("1.5GB", 1_500_000_000), ("1GiB", 2**30), ("2 TB", 2 * 10**12), ("1tib", 2**40), (" 3 kB ", 3000),
    ],
)  # fmt: skip
def test_size_as_people_write_it_is_bytes(told, wanted):
    """A size is a number of bytes, or text with a unit, decimal or binary."""
    assert size_bytes(told) == wanted
    assert type(size_bytes(told)) is int


@pytest.mark.parametrize(
    "told",
    [
        -1, "-1MB", 1.5, 64e6, math.inf, True, None, "", "MB", "64M", "64 megabytes", "1e6", "9" * 400 + "TB",
        b"64MB", [1],
        "1\u212aB",
    ],
)  # fmt: skip
def test_size_that_is_none_is_refused_with_the_mend(told):
    """A negative or unreadable size is a ConfigurationError that tells how to write one."""
    with pytest.raises(ConfigurationError) as caught:
        size_bytes(told, "memory")
    assert str(caught.value).startswith('memory must be a number of bytes, or text like "64MB", "1GiB"')


@given(
    st.one_of(
        st.text(max_size=8), st.from_regex(r"\A\d{1,3}(\.\d)? ?(ms|s|m|h|d|kb|MiB)?\Z"), st.integers(), st.floats()
    )
)
def test_any_text_or_number_is_read_or_refused(told):
    """Whatever is given: a positive finite duration, a size of at least 0, or a ConfigurationError."""
    with suppress(ConfigurationError):
        assert 0 < seconds(told) < math.inf
    with suppress(ConfigurationError):
        assert size_bytes(told) >= 0


def test_ttl_by_default_is_that_of_the_design():
    """Memory 5 minutes, disk a day, semantic an hour, a tenth of jitter."""
    ttl = TTL()
    assert (ttl.of("memory"), ttl.of("disk"), ttl.of("semantic"), ttl.jitter) == (300.0, 86400.0, 3600.0, 0.1)
    assert ttl.of("memory") == MEMORY_SECONDS


def test_ttl_of_memory_as_the_exact_store_is_the_semantic_one():
    """Law 4: with no disk, memory is the exact store, and its default ttl is then the semantic one."""
    assert TTL().of("memory", is_store=True) == 3600.0
    assert TTL(semantic="2h").of("memory", is_store=True) == 7200.0
    assert TTL(memory="1m").of("memory", is_store=True) == 60.0
    assert TTL(memory="1m").of("memory") == 60.0


@pytest.mark.parametrize("tier", ["memory", "disk", "semantic"])
def test_ttl_given_as_text_is_seconds(tier):
    """Every tier takes text or a number, and tells seconds."""
    assert TTL(**{tier: "10m"}).of(tier) == 600.0
    assert TTL(**{tier: 10}).of(tier) == 10.0
    assert type(TTL(**{tier: 10}).of(tier)) is float


@pytest.mark.parametrize("tier", ["memory", "disk", "semantic"])
@pytest.mark.parametrize("told", [-1, 0, "soon", math.nan, True, [1]])
def test_ttl_that_is_none_is_refused_by_its_tier(tier, told):
    """A negative ttl is a ConfigurationError at construction, and names the tier."""
    with pytest.raises(ConfigurationError, match=f"ttl of {tier} must be a positive number of seconds"):
        TTL(**{tier: told})


@pytest.mark.parametrize("tier", ["disk", "semantic"])
def test_ttl_left_out_is_refused_where_there_is_no_other(tier):
    """Only memory's ttl may be None: it has another to go by."""
    assert TTL(memory=None).of("memory") == 300.0
    with pytest.raises(ConfigurationError, match=f"ttl of {tier}"):
        TTL(**{tier: None})


@pytest.mark.parametrize("jitter", [-0.1, 1, 1.0, 2, math.nan, math.inf, True, False, "0.1", None])
def test_jitter_outside_is_refused_with_the_mend(jitter):
    """Jitter is a share of the ttl: at least 0, below 1."""
    with pytest.raises(ConfigurationError, match="jitter is a share of the ttl, at least 0 and below 1"):
        TTL(jitter=jitter)


@pytest.mark.parametrize("jitter", [0, 0.0, 0.5, 0.999])
def test_jitter_inside_is_taken(jitter):
    """From none at all to nearly the whole ttl."""
    assert TTL(jitter=jitter).jitter == jitter


def test_timeouts_by_default_are_those_of_the_design():
    """Disk 25 ms, semantic 250 ms, flight 30 s."""
    timeouts = Timeouts()
    assert (timeouts.of("disk"), timeouts.of("semantic"), timeouts.of("flight")) == (0.025, 0.25, 30.0)


@pytest.mark.parametrize("name", ["disk", "semantic", "flight"])
def test_timeout_that_is_none_is_refused_by_its_name(name):
    """A wrong timeout is a ConfigurationError at construction, and names what it is for."""
    assert Timeouts(**{name: "1s"}).of(name) == 1.0
    for told in (-1, 0, "soon", None, math.nan):
        with pytest.raises(ConfigurationError, match=f"timeout of {name} must be a positive number of seconds"):
            Timeouts(**{name: told})


def test_settings_once_made_stay():
    """Settings are values: nobody changes them under a running cache, and they may be shared."""
    for made, field in ((TTL(), "disk"), (Timeouts(), "disk")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field, -1)
    assert TTL(disk="1h") == TTL(disk=3600)
