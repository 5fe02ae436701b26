"""What runs jobs and agents: supervisors, the local backend, and the mains of child processes."""
