"""Which rows repeat an earlier one: the two arrays answer as a dictionary would."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_app.repeats import FirstLines

#: Few different numbers, some of which share a slot, so that repetitions and full slots are common.
KEYS = st.one_of(
    st.integers(0, 40), st.sampled_from([4096 * n + 7 for n in range(30)]), st.sampled_from([2**64 - 1, 2**63])
)
BATCHES = st.lists(st.tuples(st.booleans(), st.lists(KEYS, min_size=1, max_size=60, unique_by=lambda key: key or 1)))


def hashes_of(keys: list[int]) -> numpy.ndarray:
    return numpy.array(keys, dtype=numpy.uint64)


@pytest.mark.parametrize("limit", [50, 10_000])
@given(batches=BATCHES)
def test_rows_are_remembered_as_in_a_dictionary(limit: int, batches: list[tuple[bool, list[int]]]):
    # Arrange
    first_lines, known, line = FirstLines(limit), dict[int, int](), 1

    for is_block, keys in batches:
        repeated = [number for number, key in enumerate(keys) if (key or 1) in known]
        if is_block:
            # Act
            found, is_added = first_lines.repeated(hashes_of(keys)), first_lines.add_all(hashes_of(keys), line)

            # Assert
            assert found == repeated
            assert is_added is not bool(repeated)
            fresh = [] if repeated else list(enumerate(keys))
        else:
            # Act
            lines = [first_lines.of(key, line + number) for number, key in enumerate(keys)]

            # Assert
            assert lines == [known.get(key or 1) for key in keys]
            fresh = [(number, key) for number, key in enumerate(keys) if number not in repeated]
        for number, key in fresh[: limit - len(known)]:
            known[key or 1] = line + number
        line += len(keys)
    assert len(first_lines) == len(known)


def test_rows_that_repeat_each_other_are_named_but_not_added():
    # Arrange
    first_lines = FirstLines(100)
    keys = hashes_of([5, 6, 5, 7, 6])

    # Act
    is_added = first_lines.add_all(keys, 1)

    # Assert
    assert (is_added, len(first_lines), first_lines.repeated(keys)) == (False, 0, [2, 4])


def test_many_rows_keep_their_lines_while_the_arrays_grow():
    # Arrange
    chance = numpy.random.default_rng(7)
    keys = numpy.unique(chance.integers(0, 2**64, 300_000, dtype=numpy.uint64))
    chance.shuffle(keys)
    first_lines = FirstLines(200_000)

    # Act
    added = [first_lines.add_all(keys[at : at + 3_000], at + 1) for at in range(0, len(keys), 3_000)]

    # Assert
    assert all(added)
    assert len(first_lines) == 200_000
    places = (0, 1, 2_999, 150_000, 199_999)
    assert [first_lines.of(int(keys[at]), 0) for at in places] == [at + 1 for at in places]
    assert first_lines.of(int(keys[200_000]), 9) is None  # beyond the limit: looked up, not remembered
    assert first_lines.repeated(keys[:10]) == list(range(10))
