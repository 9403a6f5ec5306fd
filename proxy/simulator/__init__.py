"""A strict stand-in for the export API and its login server, both on one port.

For developing, demonstrating and load-testing against; no part of the proxy's own work
imports it. The rules live in modules that know neither HTTP nor a clock (`limiter`, `grants`,
`tokens`, `login`, `exports`, `ledger`, `errors`, `incidents`); `api`, `service_desk` and `app` put
them on a socket. The incident table is a strict stand-in for ServiceNow's.
"""

from proxy.simulator.app import RunningServer, Simulator, run
from proxy.simulator.ledger import AccountReport, Arrival
from proxy.simulator.service_desk import Fault
from proxy.simulator.settings import VOICE_SCOPE, ClientSpec, SimulatorSettings
from proxy.simulator.tokens import SigningKey

__all__ = [
    "VOICE_SCOPE",
    "AccountReport",
    "Arrival",
    "ClientSpec",
    "Fault",
    "RunningServer",
    "SigningKey",
    "Simulator",
    "SimulatorSettings",
    "run",
]
