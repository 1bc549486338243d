"""Clips finished for visitors: while they wait, or through the queue."""
