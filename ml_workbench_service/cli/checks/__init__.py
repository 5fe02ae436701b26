"""What `doctor` looks at: the machine, the service's places on it, and the things outside."""
