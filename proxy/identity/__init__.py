"""From a credential to who is calling."""
