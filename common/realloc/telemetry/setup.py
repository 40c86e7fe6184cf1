"""placeholder"""

import dataclasses


@dataclasses.dataclass
class Telemetry:
    def shutdown(self) -> None: ...


def start(**kw) -> Telemetry:
    return Telemetry()
