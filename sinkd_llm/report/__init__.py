"""What a run says at its end: results, table, page."""
