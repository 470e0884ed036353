"""What surrounds a training step: the rows that it gets, and what is made sure of its numbers."""
