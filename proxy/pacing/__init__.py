"""Who may send when: accounts, their queues and their holds.

Each module builds on those before it. `slot`: tickets, slots, reports. `waiters`: tickets in order.
`turns`: what pacing needs of a store. `queue`: waiters, pace and lease of one route. `holding`: a
hold and its probe. `allowance`: what an account may do on all its routes. `account_queue`: a queue
in its account. `account`: the decisions. `waiting`: the waits. `accounts`: which accounts exist.
"""
