"""gRPC servers and channels: deadlines, rich errors, health, reflection, tracing."""
