"""Where the teacher's distribution comes from."""

from sinkd_llm.teachers.local import LocalTeacher

__all__ = ["LocalTeacher"]
