"""From a credential to its caller."""
