"""A teacher's signal in files."""
