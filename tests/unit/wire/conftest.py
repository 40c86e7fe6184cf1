"""Compiles the tests' own messages, without leaving generated code behind."""

from pathlib import Path
from types import SimpleNamespace

import grpc_tools
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    timestamp_pb2,
)
from grpc_tools import protoc

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def messages(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The classes of messages.proto by name."""
    out = tmp_path_factory.mktemp("protos") / "messages.pb"
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["", f"-I{HERE}", f"-I{well_known}", f"--descriptor_set_out={out}"]
    assert protoc.main([*arguments, str(HERE / "messages.proto")]) == 0
    pool = descriptor_pool.Default()
    for imported in (duration_pb2, timestamp_pb2):
        assert pool.FindFileByName(imported.DESCRIPTOR.name)
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    types = pool.FindFileByName("messages.proto").message_types_by_name
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(each) for name, each in types.items()}
    )
