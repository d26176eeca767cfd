"""Model calls on a bounded set of threads, one by one or in batches."""
