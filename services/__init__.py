"""The services: thin processes, independent of each other."""
