"""A cluster of processes as one Slurm job."""
