"""The embedded run: stand-in API, proxy and callers in one process, and a list of broken promises.

* `callers`: what the callers do
* `display`: what is shown
* `promises`: what is judged
* `stage`: the three put together

The proxy is used as its callers use it, over HTTP. What reached the API is taken from the
simulator's report alone, never from the proxy's own view.
"""

from proxy.demo.stage import run

__all__ = ["run"]
