"""A lease as a value: from when until when."""

from math import inf

import pytest

from proxy.pacing.leases import FREE, NOT_OURS, Lease


@pytest.mark.parametrize(
    ("lease", "now", "opens"),
    [
        (Lease(10.0, 12.0), 9.0, 10.0),
        (Lease(10.0, 12.0), 12.0, 10.0),
        (Lease(10.0, 12.0), 12.1, inf),
        (FREE, 1e9, -inf),
        (NOT_OURS, 0.0, inf),
    ],
)
def test_lease_may_be_used_until_it_has_run_out(lease: Lease, now: float, opens: float) -> None:
    assert lease.opens(now) == opens
