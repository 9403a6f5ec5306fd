"""The rules as pure functions: values in, values out; no I/O, clock, randomness or logging."""
