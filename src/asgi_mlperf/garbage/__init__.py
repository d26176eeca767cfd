"""Garbage collection that stays out of the way of requests."""
