"""What a trainer leaves beside its student, and what it sends to a hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from transformers import Trainer

from sinkd_llm import SinKDTrainer


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been uploaded."""
    calls: list[dict[str, Any]] = []

    def upload(self: Any, **arguments: Any) -> str:
        folder = Path(arguments["folder_path"])
        kept = {name for name in arguments["allow_patterns"] if (folder / name).exists()}
        calls.append({**arguments, "files": kept, "card": (folder / "README.md").read_text(encoding="utf-8")})
        return "sent"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/mine"))
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
    return calls


def test_a_saved_student_has_a_card_of_what_the_trainer_knows(
    train: Callable[..., SinKDTrainer], tmp_path: Path
) -> None:
    trainer = train()
    trainer.save_model(str(tmp_path / "student"))
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert "knowledge-distillation" in card.data.tags
    assert "AutoModelForCausalLM" in card.text
    assert "SinKD" in card.text


def test_only_the_student_is_sent(train: Callable[..., SinKDTrainer], sent: list[dict[str, Any]]) -> None:
    trainer = train(push_to_hub=True, hub_model_id="me/mine", hub_token="hf_secret")
    folder = Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "predictions.json", "transport_plan.json", "data.csv"):
        (folder / name).write_text("rows of the data")
    trainer.save_model()
    (call,) = sent
    assert call["files"] >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "sinkd_student.json"}
    assert not call["files"] & {"report.html", "predictions.json", "transport_plan.json", "data.csv"}
    assert (call["repo_id"], call["token"]) == ("me/mine", "hf_secret")
    assert "hf_secret" not in call["card"]
    assert 'snapshot_download("me/mine")' in call["card"]
    assert trainer.push_to_hub("again") == "sent"
    assert sent[-1]["commit_message"] == "again"
