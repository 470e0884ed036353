"""Tasks: rows to prompts, answer choices and gold answers. Knows no model."""

from sinkd_llm.tasks.registry import TaskInfo, list_tasks, load_task
from sinkd_llm.tasks.task import Example, Task

__all__ = ["Example", "Task", "TaskInfo", "list_tasks", "load_task"]
