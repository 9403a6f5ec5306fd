"""What maintainers run by hand or in CI: generated documentation, audit, release."""
