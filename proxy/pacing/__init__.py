"""Who may send when: accounts, their queues and their holds.

Each module builds on those before it. `slot`: tickets, slots, reports. `waiters`: tickets in order.
`leases`: what pacing needs of a store. `queue`: waiters, pace and lease of one route. `holding`: a
hold and its probe. `allowance`: what an account may do on all its routes. `leased_queue`,
`account_queue`: a queue in its account, as a store and as callers see it. `prediction`: how long a
request would wait. `queues`: the queues of an account, and what a reload does to them. `holds`: its
holds. `scheduler`: the decisions. `account`: what is known of an account. `waiting`: the waits.
`accounts`: which accounts exist.
"""
