"""From cases to results: targets, worker processes, the run."""
