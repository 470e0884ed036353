"""What a run says at its end: its results, written and read here, as a table and as a page."""
