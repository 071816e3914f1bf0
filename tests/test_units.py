"""Bytes as people read them."""

import pytest
from glm_image_pack.glmimage_core.units import human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (20_000_000, "20.0 MB"),
        (999_960_000, "1.00 GB"),
        (13_900_000_000, "13.90 GB"),
        (2_500_000_000_000, "2500.00 GB"),
    ],
)
def test_bytes_are_shown_in_decimal_units_and_never_as_a_thousand_of_one(count, text):
    assert human_bytes(count) == text
