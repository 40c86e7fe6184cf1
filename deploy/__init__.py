"""How a cluster is brought up: on one machine, on Kubernetes, on Slurm."""
