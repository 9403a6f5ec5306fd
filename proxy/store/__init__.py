"""What replicas share, in Redis: turns, holds and issued tokens."""
