"""The scan of rows in half precision, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.semantic.half import NO_ROW, Scanner

pytestmark = pytest.mark.semantic

DIMENSION = 8


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), max_size=3), queries=st.sampled_from([1, 3, 40]), k=st.sampled_from([1, 4, 90]),
    dead=st.sampled_from([None, 0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_nearest_of_parts_are_those_of_the_whole(sizes, queries, k, dead, seed):
    """Whatever the parts, however few of their rows may be found: similarities and numbers are the exact ones."""
    rng = np.random.default_rng(seed)
    asked = rng.standard_normal((queries, DIMENSION)).astype(np.float32)
    parts, rows, numbers = [], [np.empty((0, DIMENSION), np.float16)], [np.empty(0, np.int64)]
    for place, size in enumerate(sizes):
        part = rng.standard_normal((size, DIMENSION)).astype(np.float16)
        alive = None if dead is None else rng.random(size) >= dead
        parts.append((part, alive, 1000 * place))
        living = np.arange(size) if alive is None else alive.nonzero()[0]
        rows.append(part[living])
        numbers.append(living + 1000 * place)
    similarities, found = Scanner(DIMENSION).nearest(asked, parts, k)
    assert similarities.shape == found.shape == (queries, k)
    products = asked @ np.concatenate(rows).astype(np.float32).T
    number_of = np.concatenate(numbers)
    for query in range(queries):
        is_found = found[query] != NO_ROW
        assert is_found.sum() == min(k, len(number_of))
        assert np.isneginf(similarities[query][~is_found]).all()
        expected = np.sort(products[query])[::-1][:k]
        assert np.allclose(np.sort(similarities[query][is_found])[::-1], expected, atol=1e-4)
        place_of = {number: place for place, number in enumerate(number_of.tolist())}
        for similarity, number in zip(similarities[query][is_found], found[query][is_found].tolist(), strict=True):
            assert similarity == pytest.approx(products[query][place_of[number]], abs=1e-4)
        assert len(set(found[query][is_found].tolist())) == is_found.sum()


def test_convert_gives_what_numpy_gives():
    rows = np.random.default_rng(0).standard_normal((100, DIMENSION)).astype(np.float16)
    assert np.array_equal(Scanner(DIMENSION).convert(rows), rows.astype(np.float32))
