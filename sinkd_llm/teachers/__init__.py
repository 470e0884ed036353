"""Where the teacher's distribution comes from."""

from sinkd_llm.teachers.local import LocalTeacher
from sinkd_llm.teachers.sharding import place_teacher, resolve_placement, teacher_engine_config

__all__ = ["LocalTeacher", "place_teacher", "resolve_placement", "teacher_engine_config"]
