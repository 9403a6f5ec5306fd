"""Retry-After: every valid form is honoured, and nothing a server writes can do harm."""

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.rules.retry_after import believable, delay_seconds, http_date, retry_after

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples
NOW_2026 = 1_767_225_600.0  # Thu, 01 Jan 2026 00:00:00 GMT


def wait(*values: str, date: str | None = None, now: float = NOW) -> float | None:
    return retry_after(values, date=date, now=now, maximum=300.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("2", 2.0),
        ("120", 120.0),
        ("007", 7.0),
        ("0" * 5000 + "7", 7.0),
        ("300", 300.0),
        ("301", 300.0),
        ("9" * 400, 300.0),
        ("9" * 5000, 300.0),
        (" \t5\t ", 5.0),
        ("0.0", 0.0),
        ("0.2", 1.0),
        ("1.0", 1.0),
        ("1.5", 2.0),
        ("1." + "0" * 400 + "1", 2.0),
        ("9" * 400 + ".5", 300.0),
    ],
)
def test_delay(value: str, seconds: float) -> None:
    """Digits are seconds, of any length; a fraction is rounded up."""
    assert wait(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "-5", "+5", "-0", "٣", "²", "nan", "inf", "1e3", "1e-3", "0x10", "1_0"),
        *("5;6", "5 6", "5s", "5;", "1.", ".5", "1.2.3", "5\n", "\xa05", "5\x00", '"5"', "soon"),
    ],
)
def test_anything_else_counts_as_absent(value: str) -> None:
    """What is neither digits nor a date is no wait."""
    assert wait(value) is None


def test_largest_valid_of_several() -> None:
    """Waiting for the longest of them obeys them all."""
    assert wait("1", "99", "5") == 99.0
    assert wait("x", "7") == 7.0
    assert wait("7", "Sun, 06 Nov 1994 08:49:57 GMT", "-1") == 20.0
    assert wait("x", "-1") is None
    assert wait() is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2, 2", 2.0),
        ("2,2", 2.0),
        ("5,6", 6.0),
        ("7 , 3", 7.0),
        (",,4,", 4.0),
        ("soon, 4, -9", 4.0),
        ("Sun, 06 Nov 1994 08:49:57 GMT, 5", 20.0),
        ("25, Sun, 06 Nov 1994 08:49:57 GMT", 25.0),
        ("Sun, 06 Nov 1994 08:49:57 GMT, Sun, 06 Nov 1994 08:49:59 GMT", 22.0),
    ],
)
def test_largest_valid_of_a_list(value: str, seconds: float) -> None:
    """As a field that is there twice arrives through some proxies."""
    assert wait(value) == seconds


@pytest.mark.parametrize("zone", ["UTC", "+0000"])
def test_date_in_another_spelling_of_the_zone(zone: str) -> None:
    assert wait(f"Sun, 06 Nov 1994 08:49:57 {zone}") == 20.0
    assert wait(f"Sun, 06 Nov 1994 08:49:57 {zone}, 3") == 20.0


@pytest.mark.parametrize("zone", ["-0000", "+0100", "CET", "utc", "+00:00", "Z", "UTC UTC"])
def test_date_in_any_other_zone_is_no_wait(zone: str) -> None:
    assert wait(f"Sun, 06 Nov 1994 08:49:57 {zone}") is None


def test_date_counts_from_the_date_of_the_response() -> None:
    """A server five minutes behind still means ten seconds."""
    assert wait("Sun, 06 Nov 1994 08:44:47 GMT", date=" Sun, 06 Nov 1994 08:44:37 GMT") == 10.0


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        (None, 10.0),
        ("yesterday", 10.0),
        ("Sat, 05 Nov 1994 08:49:37 GMT", 300.0),
        ("Sat, 05 Nov 1994 08:49:36 GMT", 10.0),
        ("Mon, 07 Nov 1994 08:49:37 GMT", 0.0),
        ("Mon, 07 Nov 1994 08:49:38 GMT", 10.0),
    ],
)
def test_date_counts_from_now_when_the_response_has_no_sane_one(
    date: str | None, seconds: float
) -> None:
    """A Date that is absent, unreadable or more than a day away is not believed."""
    assert wait("Sun, 06 Nov 1994 08:49:47 GMT", date=date) == seconds


def test_fraction_of_a_second_to_a_date_is_rounded_up() -> None:
    """Never sooner than told."""
    assert wait("Sun, 06 Nov 1994 08:49:47 GMT", now=NOW + 0.25) == 10.0


def test_past_date_is_no_wait() -> None:
    """A date that has come says: now."""
    assert wait("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0
    assert wait("Sun, 06 Nov 1994 08:49:36 GMT") == 0.0
    assert wait("Mon, 01 Jan 0001 00:00:00 GMT") == 0.0


def test_far_date_is_clamped() -> None:
    """The last year there is waits no longer than any other."""
    assert wait("Fri, 31 Dec 9999 23:59:60 GMT") == 300.0


@pytest.mark.parametrize(
    ("value", "stamp"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", NOW),
        ("Sunday, 06-Nov-94 08:49:37 GMT", NOW),
        ("Sun Nov  6 08:49:37 1994", NOW),
        ("Sun Nov 06 08:49:37 1994", NOW),
        ("\tSun, 06 Nov 1994 08:49:37 GMT ", NOW),
        ("Mon, 06 Nov 1994 08:49:37 GMT", NOW),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", -1.0),
        ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800.0),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800.0),
    ],
)
def test_http_date(value: str, stamp: float) -> None:
    """All three forms are read, leap seconds too; the weekday is not checked."""
    assert http_date(value, now=NOW) == stamp


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 08:49:37 GMT GMT",
        "sun, 06 nov 1994 08:49:37 GMT",
        "Son, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06 Nov 1994 08:49:37 GMT",
        "06 Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun,  6 Nov 1994 08:49:37 GMT",
        "Sun, 06  Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "Sun, 06 Nov 1994 08:49 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 08:49:37.5 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Mon, 31 Feb 1994 08:49:37 GMT",
        "Wed, 29 Feb 2023 08:49:37 GMT",
        "Sat, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 19940 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-94 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37",
        "Sun Nov 6 08:49:37 1994",
        "Sun Nov  6 08:49:37 1994 GMT",
        "1994-11-06T08:49:37Z",
        "784111777",
    ],
)
def test_not_an_http_date(value: str) -> None:
    """No other spelling, no other zone, no day that never was."""
    assert http_date(value, now=NOW) is None


@pytest.mark.parametrize(
    ("value", "four_digits", "now"),
    [
        ("Thursday, 01-Jan-26 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", NOW_2026),
        ("Friday, 01-Jan-99 00:00:00 GMT", "Fri, 01 Jan 1999 00:00:00 GMT", NOW_2026),
        ("Wednesday, 01-Jan-76 00:00:00 GMT", "Wed, 01 Jan 2076 00:00:00 GMT", NOW_2026),
        ("Thursday, 01-Jan-76 00:00:01 GMT", "Thu, 01 Jan 1976 00:00:01 GMT", NOW_2026),
        ("Saturday, 01-Jan-77 00:00:00 GMT", "Sat, 01 Jan 1977 00:00:00 GMT", NOW_2026),
        ("Saturday, 01-Jan-00 00:00:00 GMT", "Sat, 01 Jan 2000 00:00:00 GMT", NOW_2026),
        ("Saturday, 01-Jan-00 00:00:00 GMT", "Sat, 01 Jan 2000 00:00:00 GMT", NOW),
        ("Sunday, 01-Jan-45 00:00:00 GMT", "Mon, 01 Jan 1945 00:00:00 GMT", NOW),
    ],
)
def test_two_digit_year(value: str, four_digits: str, now: float) -> None:
    """The latest such year that is at most fifty years ahead (RFC 9110 section 5.6.7)."""
    assert http_date(value, now=now) == http_date(four_digits, now=now)


DATE_LIKE = st.from_regex(
    r"[MTWFS][a-z]{2,5},? [0-9 ][0-9][ -][JFMASOND][a-z]{2}[ -][0-9]{2,4} [0-9:]{8}( GMT)?"
)
ASCTIME = st.from_regex(r"Sun (Jan|Feb|Nov) [ 0-3][0-9] [0-2][0-9]:00:60 [0-9]{4}", fullmatch=True)
FIELD = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
NUMBER = st.from_regex(r"\A[ \t]*[0-9]{0,400}\.?[0-9]{0,400}[ \t]*\Z")


@given(
    values=st.lists(FIELD | DATE_LIKE | ASCTIME | NUMBER, max_size=3),
    date=st.none() | FIELD | DATE_LIKE | ASCTIME,
    now=st.floats(min_value=0, max_value=4e9),
    maximum=st.floats(min_value=0, max_value=1e6),
)
@example(values=["Sun Nov 31 00:00:60 9999"], date="Sun Nov  0 00:00:60 0000", now=0.0, maximum=0.0)
def test_any_text_is_a_bounded_wait_or_none(
    values: list[str], date: str | None, now: float, maximum: float
) -> None:
    """It never raises, and what it returns can be slept."""
    seconds = retry_after(values, date=date, now=now, maximum=maximum)
    assert seconds is None or 0.0 <= seconds <= maximum


@given(st.integers(min_value=0, max_value=10**400))
def test_any_number_of_seconds_is_read(seconds: int) -> None:
    """A wait is obeyed in full up to the maximum."""
    assert wait(str(seconds)) == float(min(seconds, 300))


@pytest.mark.parametrize(
    ("named", "believed"),
    [(None, None), (0.0, 0.0), (41e3, 41e3), (86400.0, 86400.0), (86401.0, 300.0), (inf, 300.0)],
)
def test_absurd_wait_is_not_promised(named: float | None, believed: float | None) -> None:
    """More than a day; but an operator may allow more."""
    assert believable(named, maximum=300.0) == believed
    assert believable(90_000.0, maximum=100_000.0) == 90_000.0


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(-1.0, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.001, 2), (2.0, 2), (29.5, 30)],
)
def test_written_delay(seconds: float, written: int) -> None:
    """Whole seconds, never sooner than true, at least 1."""
    assert delay_seconds(seconds) == written


def test_a_date_with_two_digits_for_the_year_is_read_wherever_it_stands() -> None:
    now = 784_111_777.0  # Sunday, 06-Nov-94 08:49:37 GMT
    late, later = "Sunday, 06-Nov-94 08:49:47 GMT", "Sunday, 06-Nov-94 08:49:57 GMT"
    assert retry_after([late], date=None, now=now, maximum=300.0) == 10.0
    assert retry_after([f"5, {later}"], date=None, now=now, maximum=300.0) == 20.0
    assert retry_after([later], date=late, now=now, maximum=300.0) == 10.0


def test_dates_in_a_list_count_from_the_date_of_the_answer() -> None:
    now, date = 784_111_777.0, "Sun, 06 Nov 1994 08:49:39 GMT"
    values = ["5, Sun, 06 Nov 1994 08:49:47 GMT"]
    assert retry_after(values, date=date, now=now, maximum=300.0) == 8.0
