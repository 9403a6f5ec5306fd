"""The process: wiring, signals, reloads, and the end."""
