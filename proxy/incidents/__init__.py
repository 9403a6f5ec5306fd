"""Reporting lasting trouble to a service desk: opened once, updated, closed when it is over.

* `watch`: what is known of each configured account's trouble
* `reporter`: keeps the episodes, and takes their steps one at a time
* `servicenow`, `webhook`: the two desks; `calls`, `credentials`: how they are called
* `ledger`: what replicas agree on

The request path only notes facts in `watch`, and waits for nothing here.
"""
