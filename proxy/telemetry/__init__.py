"""The recorder for programs that are not behind the gateway: its tables, without its server.

from proxy.telemetry import InvocationRecord, TelemetryLogger

with TelemetryLogger("data/tollkeeper.db") as telemetry:
    telemetry.log_invocation(InvocationRecord(tool_name="cli", model_name="llama"))
"""

from proxy.store.address import SchemaError, StoreError
from proxy.telemetry.logger import DuplicateInvocation, TelemetryLogger
from proxy.telemetry.record import InvocationRecord

__all__ = [
    "DuplicateInvocation",
    "InvocationRecord",
    "SchemaError",
    "StoreError",
    "TelemetryLogger",
]
