"""Tests of the pure rules: plain calls, nothing faked."""
