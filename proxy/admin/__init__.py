"""The admin port: metrics, health, status and what operators can do."""
