"""Numbers as text: three digits, one way for each unit."""

import pytest

from sltt_bench.common.format import (
    counted,
    format_bytes,
    format_percent,
    format_seconds,
    parse_bytes,
    scale_for,
)


def test_bytes_have_binary_units_and_three_digits() -> None:
    sizes = (0, 999, 1023, 1024, 1023 * 1024, 1024 * 1024, 3.27 * 2**30, 5000 * 2**40)
    shown = ["0 B", "999 B", "1023 B", "1 KiB", "1023 KiB", "1 MiB", "3.27 GiB", "5000 TiB"]
    assert [format_bytes(size) for size in sizes] == shown


def test_seconds_turn_into_minutes_and_hours_from_two_on() -> None:
    times = (0, 2.5e-6, 0.0123, 1, 93.44, 119, 120, 7199, 9000, 3.6e6)
    shown = ["0 s", "2.5 µs", "12.3 ms", "1 s", "93.4 s", "119 s", "2 min", "120 min", "2.5 h", "1000 h"]
    assert [format_seconds(time) for time in times] == shown


def test_counts_have_decimal_prefixes() -> None:
    counts = (0, 12, 999.4, 12_345, 2_340_000, 1.5e21)
    shown = ["0", "12.0", "999", "12,345", "2.34 M", "1500 E"]
    assert [scale_for("count", [count]).text(count) for count in counts] == shown


def test_a_count_of_one_has_its_noun_in_the_singular() -> None:
    counts = [
        (1, "cell"),
        (0, "cell"),
        (2, "class"),
        (1.0, "point"),
        (0.28, "point"),
        ("1, 2", "epoch"),
        (3, "batch"),
    ]
    words = ["1 cell", "0 cells", "2 classes", "1 point", "0.28 points", "1, 2 epochs", "3 batches"]
    assert [counted(*each) for each in counts] == words


def test_percentages_have_two_decimals() -> None:
    assert format_percent(0.9444) == "94.44 %"


@pytest.mark.parametrize("formatter", [format_bytes, format_seconds, format_percent])
def test_a_missing_number_is_a_dash_and_never_zero(formatter) -> None:  # type: ignore[no-untyped-def]
    assert formatter(None) == "–"


def test_amounts_of_memory_are_read_with_their_unit() -> None:
    assert parse_bytes("24GiB") == 24 * 2**30
    assert parse_bytes("1.5 GB") == 1_500_000_000
    assert parse_bytes("700 B") == 700
    assert parse_bytes("1TiB") == 1024 * parse_bytes("1GiB")
    for wrong in ("24", "0GiB", "-1GB", "much"):
        with pytest.raises(ValueError, match="24GiB"):
            parse_bytes(wrong)
