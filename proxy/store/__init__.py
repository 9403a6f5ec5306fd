"""What replicas share, in Redis: leases, holds and issued tokens."""
