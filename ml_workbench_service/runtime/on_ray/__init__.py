"""Workers on a Ray cluster: the training backend, its submissions and logs, and the main of a worker."""
