"""Conversions between protobuf messages and dataclasses."""
