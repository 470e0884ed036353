"""A student for other programs: written in their format, and compared with the student it was before it counts."""
