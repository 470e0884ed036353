"""Tasks: rows to prompts, answer choices and gold answers. Knows no model."""

from sinkd_llm.tasks.registry import TaskInfo, list_tasks, load_task
from sinkd_llm.tasks.rendering import Example
from sinkd_llm.tasks.task import Task

__all__ = ["Example", "Task", "TaskInfo", "list_tasks", "load_task"]
