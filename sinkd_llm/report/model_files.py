"""What the configuration in a student's folder says of its model; no model is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from sinkd_llm.errors import InputError

CLASSIFIER = "SequenceClassification"
# The class of Transformers ends so -> what a hub calls its use.
PIPELINES = {
    CLASSIFIER: "text-classification",
    "CausalLM": "text-generation",
    "Seq2SeqLM": "text2text-generation",
    "MaskedLM": "fill-mask",
}
# The end of a class of Transformers, and PEFT's name of what a model is for -> the end of the class that loads it.
_LOADED_AS = {
    **{name: name for name in PIPELINES},
    **{"LMHeadModel": "CausalLM", "ConditionalGeneration": "Seq2SeqLM"},
    **{"SEQ_CLS": CLASSIFIER, "CAUSAL_LM": "CausalLM", "SEQ_2_SEQ_LM": "Seq2SeqLM"},
}


@dataclass(frozen=True)
class ModelFiles:
    """
    A model in a folder.

    Attributes:
        loads_as (`str`): the end of the class of Transformers that loads it, such as `"CausalLM"`; empty: not known.
        is_adapter (`bool`): whether PEFT's class does.
        labels (`tuple[str, ...]`): what a classification head calls its outputs, in their order; empty: not said.
    """

    loads_as: str = ""
    is_adapter: bool = False
    labels: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "ModelFiles | None":
        """
        Of a folder; `None` where no model lies.

        Raises:
            InputError: if the configuration is damaged.
        """
        # Of both, the configuration is of the base that lies beside the adapter, and Transformers loads the two.
        names = ("config.json", "adapter_config.json")
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            name = str((content.get("architectures") or [content.get("task_type") or ""])[0])
            labels = {int(index): str(label) for index, label in (content.get("id2label") or {}).items()}
        except (OSError, ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); save the student again.") from error
        loads_as = next((loaded for end, loaded in _LOADED_AS.items() if name.endswith(end)), "")
        in_order = tuple(labels[index] for index in sorted(labels))
        return cls(loads_as, file.name == "adapter_config.json", in_order)

    @property
    def predicts_number(self) -> bool:
        """Whether it is a classifier with one output."""
        return self.is_classifier and len(self.labels) == 1

    @property
    def is_classifier(self) -> bool:
        """Whether it has one output a class, or one in all, and no words."""
        return self.loads_as == CLASSIFIER


NO_MODEL = ModelFiles()
