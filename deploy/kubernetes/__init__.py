"""A cluster on Kubernetes: images, manifests, secrets, and the way from nothing to a smoke job."""
