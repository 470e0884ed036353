"""A student behind HTTP: typed questions in, calibrated probabilities out, within limits."""
