"""Where the teacher's distribution comes from: a model in this process, or files that one wrote earlier."""

from sinkd_llm.teachers.cached import CachedTeacher
from sinkd_llm.teachers.local import LocalTeacher

__all__ = ["CachedTeacher", "LocalTeacher"]
