"""What can be seen from outside a request: the host, its GPUs and this process."""
