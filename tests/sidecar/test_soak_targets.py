"""What `make soak` fuzzes: its targets are whole, so that they do not rot between two soaks."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[1] / "soak" / "decoders.py"
_SPEC = util.spec_from_file_location("soak_decoders", _PATH)
decoders = util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = decoders
_SPEC.loader.exec_module(decoders)


@pytest.mark.parametrize("name", decoders.TARGETS)
def test_target_takes_its_seeds_and_what_is_none(name):
    """As they are, cut short, and bytes that mean nothing."""
    for seed in [*decoders.SEEDS[name], b"", b"\0", b"\xff\xfe{", b"[" * 5_000]:
        for data in (seed, seed[: len(seed) // 2], seed + b"\xff"):
            decoders.TARGETS[name](data)


def test_every_target_has_seeds():
    """A fuzzer that begins with nothing finds little."""
    assert decoders.SEEDS.keys() == decoders.TARGETS.keys()
