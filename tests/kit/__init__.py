"""What the tests share: a clock they turn by hand, and both ends of the wire as raw bytes."""
