"""Pure planning of weight movement between layouts (numpy, no process groups)."""
