"""Who may send when: accounts, their queues and their holds."""
