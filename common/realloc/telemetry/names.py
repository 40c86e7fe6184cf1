"""placeholder"""

RPC_STATUS_CODE = "rpc.grpc.status_code"
SERVER_ADDRESS = "server.address"


def rpc_attributes(method: str) -> dict[str, str]:
    service, _, name = method.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
