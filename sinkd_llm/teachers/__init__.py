"""Where the teacher's distribution comes from: a model in this process, or files that one wrote earlier."""

from sinkd_llm.teachers.cache.reader import CachedTeacher
from sinkd_llm.teachers.local import LocalTeacher
from sinkd_llm.teachers.placement import place_teacher, resolve_placement, teacher_engine_config

__all__ = ["CachedTeacher", "LocalTeacher", "place_teacher", "resolve_placement", "teacher_engine_config"]
