"""HTTP on the wire, both ways; the only place that touches what is private in aiohttp."""
