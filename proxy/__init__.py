"""A reverse proxy that paces export requests, with one queue per service account and route.

Data flows one way. A request comes in through `http` (the listener) and takes the steps of
`forwarding`: who sent it (`identity`), which token it carries (`tokens`), when it may leave
(`pacing`). Then it leaves through `http` (the client), and its answer goes back the same way.

* `cli`, `demo`, `service`: the programs; wiring, signals, reload and shutdown are in `service`
* `forwarding`: the life of one request; `admin`: the port for operators
* `incidents`: reports lasting trouble to a service desk; no request waits for it
* `identity`: from a credential to a value that says who calls
* `tokens`: one token per managed account, kept fresh
* `store`: what replicas share, in Redis; it implements what `pacing` needs of a store
* `pacing`: who may send when: accounts, queues, holds
* `http`: bytes on the wire, both ways; `telemetry`: what is counted and logged
* `settings`, `clock` with its `timers`, `deadlines`, `retries`, `problems`: configuration, time,
  retry bounds and refusals
* `rules`: the decisions: values in, values out, no I/O and no clock

Each package imports only those below it; the contract in pyproject.toml has their order. The
`simulator` is a separate program, which imports the rules at most.
"""

__version__ = "0.2.0"
