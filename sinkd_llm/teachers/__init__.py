"""Where the teacher's distribution comes from: a model in this process, or files that one wrote earlier."""

from sinkd_llm.teachers.cache.reader import CachedTeacher
from sinkd_llm.teachers.contract import Teacher, TeacherRows
from sinkd_llm.teachers.local import LocalTeacher
from sinkd_llm.teachers.placement import resolve_placement

__all__ = ["CachedTeacher", "LocalTeacher", "Teacher", "TeacherRows", "resolve_placement"]
