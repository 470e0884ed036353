"""Data of the `quickstart` task and the generator that wrote it."""
