"""The settings of a run: their ranges, and which go together."""
