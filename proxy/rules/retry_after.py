"""Retry-After: reading a server's field, and writing our own.

A field that cannot be read counts as absent: nothing a server writes raises here, or makes a wait
that is negative, infinite or not a number. What waits for it is decided elsewhere.

Every `now` is wall time in epoch seconds; dates mean nothing on another clock.

Obeys RFC 9110 sections 10.2.3 (Retry-After) and 5.6.7 (HTTP-date).
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

# A day, which a daily limit may ask for. A longer wait is taken for an error, and not promised.
LONGEST_NAMED: Final = 86_400.0
# A server's Date farther from our clock than this is broken, not merely a little off.
SANE_SKEW_SECONDS: Final = 86_400


def retry_after(
    values: Sequence[str], *, date: str | None, now: float, maximum: float
) -> float | None:
    """Seconds to wait from receipt: the largest of the valid fields, at most `maximum`.

    0 if the time has come or is past, None if no field can be read. A date counts from `date`, the
    response's own, since both come from the server's clock, which need not agree with ours; if
    `date` is absent, unreadable or more than a day from `now`, it counts from `now`. The grammar
    has no decimals such as `1.5`; they are rounded up. It has no lists such as `2, 2` either, but
    some servers and proxies join two fields so: each value of a list counts.
    """
    sent = _sent(date, now=now)
    waits = [wait for value in values for wait in _waits(value, sent=sent, now=now)]
    return min(max(waits), maximum) if waits else None


def believable(wait: float | None, *, maximum: float) -> float | None:
    """Return the wait that a server named, or `maximum` instead of an absurd one."""
    return maximum if wait is not None and wait > max(LONGEST_NAMED, maximum) else wait


def http_date(value: str, *, now: float) -> float | None:
    """Epoch seconds of an HTTP-date in one of its three forms, else None.

    A wrong weekday is accepted: the date is clear without it.
    `now` settles the century of a two-digit year.
    """
    text = value.strip(_OWS)
    for form in _DATE_FORMS:
        if parts := form.fullmatch(text):
            return _epoch_seconds(parts, now=now)
    return None


def delay_seconds(wait: float) -> int:
    """Write a finite wait in seconds as a Retry-After: rounded up, at least 1."""
    return max(1, math.ceil(wait))


_OWS = " \t"
_DELAY = re.compile(r"(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]+))?")

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WEEKDAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_WEEKDAY = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
_IMF_FIXDATE = f"{_WEEKDAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME}"
_DATE_FORMS = (
    # IMF-fixdate, RFC 850, asctime; HTTP-date is case sensitive.
    re.compile(f"{_IMF_FIXDATE} GMT"),
    re.compile(f"{_LONG_WEEKDAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(f"{_WEEKDAY} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
# As date libraries of other languages write it: RFC 5322 sections 3.3 and 4.3.
_LENIENT_DATE = re.compile(f"{_IMF_FIXDATE} (?:UTC|\\+0000)")
_LIST = re.compile(r"[ \t]*,[ \t]*")


def _sent(date: str | None, *, now: float) -> float:
    """Return when the response was made, by its own Date if that is plausible."""
    stamp = None if date is None else http_date(date, now=now)
    return now if stamp is None or abs(stamp - now) > SANE_SKEW_SECONDS else stamp


def _waits(value: str, *, sent: float, now: float) -> Iterator[float]:
    """Yield the waits of a field: of its whole value, else of the values of a list.

    A list of dates is a list too: the comma behind a weekday is put back together.
    """
    whole = _wait(value, sent=sent, now=now)
    if whole is not None:
        yield whole
        return
    parts = _LIST.split(value.strip(_OWS))
    for before, part in pairwise(["", *parts]):
        wait = _wait(part, sent=sent, now=now)
        if wait is None and before:
            wait = _wait(f"{before}, {part}", sent=sent, now=now)
        if wait is not None:
            yield wait


def _wait(value: str, *, sent: float, now: float) -> float | None:
    delay = _DELAY.fullmatch(value.strip(_OWS))
    if delay is not None:
        # Not int(): it refuses strings of thousands of digits, where float() gives infinity.
        # And no rounding of a float: it would lose the last digits of a long fraction.
        return float(delay["whole"]) + bool((delay["fraction"] or "").strip("0"))
    due = http_date(value, now=now)
    if due is None and (parts := _LENIENT_DATE.fullmatch(value.strip(_OWS))):
        due = _epoch_seconds(parts, now=now)
    return None if due is None else float(max(0, math.ceil(due - sent)))


def _epoch_seconds(parts: re.Match[str], *, now: float) -> float | None:
    month = _MONTHS.index(parts["month"]) + 1
    day, hour, minute, second = (int(parts[name]) for name in ("day", "hour", "minute", "second"))
    year = int(parts["year"])
    if len(parts["year"]) == len("94"):
        year = _full_year(year, (month, day, hour, minute, second), now=now)
    try:
        midnight = datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        return None
    # Added up by hand because a leap second, 23:59:60, is valid here and not in a datetime.
    return midnight.timestamp() + hour * 3600 + minute * 60 + second


def _full_year(two_digits: int, rest_of_date: tuple[int, ...], *, now: float) -> int:
    """Find the latest such year whose date is at most fifty years ahead (section 5.6.7)."""
    today = datetime.fromtimestamp(now, UTC)
    horizon = (today.year + 50, *today.timetuple()[1:6])
    year = today.year - today.year % 100 + 100 + two_digits
    while (year, *rest_of_date) > horizon:
        year -= 100
    return year
