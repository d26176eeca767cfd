"""What the machine gives this worker: CPUs, memory, and the native threads that may use them."""
