"""One token per managed account, kept fresh."""
