"""Training: its settings, what a run computes with, the step up to the loss, and the trainer around it."""
