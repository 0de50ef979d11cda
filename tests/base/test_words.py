"""Numbers as people read them."""

from __future__ import annotations

import pytest

from quickstudy.base.words import size


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 kB"),
        (12_000, "12 kB"),
        (999_400, "999 kB"),
        (999_900, "1 MB"),
        (1.44e6, "1.44 MB"),
        (999.4e6, "999 MB"),
        (999.9e6, "1 GB"),
        (1.3e9, "1.3 GB"),
        (139e9, "139 GB"),
        (2e12, "2 TB"),
    ],
)
def test_a_size_has_the_unit_in_which_it_takes_three_digits(count, said):
    assert size(count) == said


@pytest.mark.parametrize("power", range(4, 15))
def test_no_size_is_told_with_an_exponent(power):
    assert not any("e" in size(share * 10**power) for share in (0.99949, 0.9995, 0.99951, 0.9999, 1.0, 5.55))
