"""The code of a model card: it stands alone, and gives the answers that the student was scored with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkd_llm.integrity import ANSWERS_FILE
from sinkd_llm.report.model_files import ModelFiles

# A column of a row in a template, with nothing done to it.
_COLUMN = re.compile(r"{{\s*(\w+)\s*}}")
_LONGEST_LINE = 100


@dataclass(frozen=True)
class PlainCode:
    """
    What code without this package needs to know.

    Args:
        model ([`ModelFiles`]): what it loads.
        place (`str`): the folder, as an expression of Python.
        texts (`Sequence[str]`): columns or templates of the texts that a classifier reads; empty: its prompt.
        prompt (`str`): the template of the prompt; empty: not known.
        answers (`Sequence[str]`): the choices of the task, where all rows have the same.
        max_length (`int`, *optional*): tokens of a row at most.
        calibrated (`bool`): whether `sinkd_answers.json` in the folder holds a calibration.
    """

    model: ModelFiles
    place: str
    texts: Sequence[str] = ()
    prompt: str = ""
    answers: Sequence[str] = ()
    max_length: int | None = None
    calibrated: bool = False

    def written(self) -> str:
        """The code; empty where no class of Transformers or PEFT is known to load the folder."""
        model = self.model
        if not model.loads_as or (model.is_adapter and model.loads_as == "MaskedLM"):  # PEFT has no such class
            return ""
        answering = self._answering() if model.is_classifier else []
        return "\n".join([*self._imports(), "", *self._loading(), *answering])

    @property
    def _class(self) -> str:
        return f"Auto{'Peft' if self.model.is_adapter else ''}ModelFor{self.model.loads_as}"

    @property
    def _on_hub(self) -> bool:
        return self.place.startswith("snapshot_download")

    def _imports(self) -> list[str]:
        names = [f"from transformers import {', '.join(sorted((self._class, 'AutoTokenizer')))}"]
        if self.model.is_adapter:
            names = [f"from peft import {self._class}", "from transformers import AutoTokenizer"]
        plain = [*(["import json"] if self.calibrated else []), "import torch"] if self.model.is_classifier else []
        hub = ["from huggingface_hub import snapshot_download"] if self._on_hub else []
        return [*plain, *hub, *names]

    def _loading(self) -> list[str]:
        # PEFT's configuration does not say how many outputs the head on the base has.
        count = len(self.answers) if self.model.is_adapter and self.model.is_classifier else 0
        more = f", num_labels={count}" if count else ""
        return [
            f"folder = {self.place}",
            f"model = {self._class}.from_pretrained(folder{more})",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
        ]

    def _answering(self) -> list[str]:
        lines = self._reading()
        if self.model.predicts_number:
            return [*lines, "print(float(logits[0, 0]))  # 0 stands for the smallest answer and 1 for the largest"]
        order = class_order(self.answers, self.model.labels)
        reordered = self.calibrated and order is not None and order != sorted(order)
        if reordered:
            lines.append(f"logits = logits[:, {order}]  # in the order of the task's answers")
        lines += _CALIBRATING if self.calibrated else []
        lines += ["probabilities = logits.softmax(-1)[0]", "best = int(probabilities.argmax())"]
        if not self.answers or (order is not None and not reordered):
            return [*lines, "print(model.config.id2label[best], float(probabilities[best]))"]
        return [*lines, *_assigned("labels", self.answers), "print(labels[best], float(probabilities[best]))"]

    def _reading(self) -> list[str]:
        names = ("text", "text_pair")[: max(1, len(self.texts))]
        lines = [""]
        for name, source in zip(names, self.texts or (None,), strict=True):
            lines.append(f"{name} = {self._sample(source)}")
        if not self.texts and self.prompt:
            lines.append('tokenizer.truncation_side = "left"')
        longest = f", max_length=min({self.max_length}, tokenizer.model_max_length)" if self.max_length else ""
        return [
            *lines,
            f'inputs = tokenizer({", ".join(names)}, truncation=True{longest}, return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model(**inputs).logits.float()",
        ]

    def _sample(self, source: str | None) -> str:
        """A text that the classifier may read, as an expression of Python."""
        if source is None:
            return repr(_filled(self.prompt)) if self.prompt else '"a text"'
        return f'"a text"  # {source}' if source.isidentifier() else repr(_filled(source).strip())


_CALIBRATING = [
    f'with open(f"{{folder}}/{ANSWERS_FILE}", encoding="utf-8") as file:',
    '    calibration = json.load(file)["calibration"]',
    'if calibration["vector"] is None:',
    '    logits = logits / calibration["temperature"]',
    "else:",
    '    scale, bias = (torch.tensor(calibration["vector"][name]) for name in ("scale", "bias"))',
    "    logits = logits.log_softmax(-1) * scale + bias",
]


def class_order(answers: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """
    The output of a head for each answer, if the head calls its outputs by the answers' words; else `None`, and the
    first output stands for the first answer.
    """
    places = {label.strip().lower(): place for place, label in enumerate(labels)}
    words = [answer.strip().lower() for answer in answers]
    if len(places) < len(labels) or sorted(places) != sorted(words):
        return None
    return [places[word] for word in words]


def answers_of(task: Mapping[str, Any]) -> list[str]:
    """The choices of a task's rows, where all have the same."""
    choices = task.get("doc_to_choice")
    found = choices.values() if isinstance(choices, Mapping) else choices if isinstance(choices, list) else ()
    return [str(choice).strip() for choice in found]


def texts_of(task: Mapping[str, Any], model: ModelFiles) -> list[str]:
    """The columns or templates of the texts that a classifier reads in the place of a prompt; empty: none."""
    texts = (task.get("metadata") or {}).get("texts") or []
    return [str(text) for text in texts] if model.is_classifier else []


def prompt_of(task: Mapping[str, Any]) -> str:
    """The template of a row's whole prompt; empty without a task."""
    description, text, prefix = (_as_template(task.get(key)) for key in ("description", "doc_to_text", "gen_prefix"))
    if prefix and not (text[-1:].isspace() or prefix[0].isspace()):
        text += str(task.get("target_delimiter", " "))
    return description + text + prefix


def _as_template(source: Any) -> str:
    text = str(source or "")
    return f"{{{{{text}}}}}" if text.isidentifier() else text


def _filled(template: str) -> str:
    """A template with `a text` for each column; what else it does to them stays, and has to be put in by hand."""
    return _COLUMN.sub("a text", template)


def _assigned(name: str, values: Sequence[str]) -> list[str]:
    line = f"{name} = {list(values)!r}"
    if len(line) <= _LONGEST_LINE:
        return [line]
    return [f"{name} = [", *(f"    {value!r}," for value in values), "]"]


def rows_code(columns: Sequence[str], task: Mapping[str, Any]) -> str:
    """
    Rows for `student.predict`, as an expression of Python; empty where no texts make a row.

    Args:
        columns (sequence of `str`): what the task reads of a row.
        task (`Mapping[str, Any]`): the keys of the task file, which say where a row's own choices stand.
    """
    if not columns:
        return ""
    choices = task.get("doc_to_choice")
    if len(columns) == 1 and columns[0] != choices:
        return '["a first text", "a second text"]'
    # No two are the same: choices of a row differ.
    values = {name: ["one answer", "another answer"] if name == choices else f"a text of {name}" for name in columns}
    return f"[{values!r}]"
