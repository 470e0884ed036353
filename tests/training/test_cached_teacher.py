"""Training from a cache: as from the teacher itself, with no teacher in memory, or a refusal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from sinkd_llm.runs.arguments import CacheArguments
from sinkd_llm.runs.cache import CacheResult, write_cache
from sinkd_llm.runs.data import RunData
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.training import pair as pairing
from tests.support.rows import opinions, regression_rows, several_tokens
from tests.support.trainers import AccuracyTask


class Setup:
    """A student, a teacher in a folder, and their tokenizer, of one family."""

    def __init__(self, folder: Path, student: Any, teacher: Any, tokenizer: Any) -> None:
        self.folder, self.student, self.tokenizer = folder, student, tokenizer
        self.teacher = str(folder / "teacher")
        teacher.save_pretrained(self.teacher)
        tokenizer.save_pretrained(self.teacher)

    def settings(self, **changes: Any) -> SinKDConfig:
        settings: dict[str, Any] = {
            "output_dir": str(self.folder / "out"),
            "max_steps": 3,
            # Adam's first steps are the signs of the gradient: a rounding error of a logit would become a step.
            "optim": "sgd",
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 5,
            "learning_rate": 1.0,
            "logging_steps": 1,
            "disable_tqdm": True,
            "save_strategy": "no",
            "use_cpu": True,
        }
        return SinKDConfig(**{**settings, **changes})

    def cache(
        self,
        data: Dataset,
        content: str = "full",
        top_k: int = 32,
        to: str = "cache",
        *,
        scored: Dataset | None = None,
        **changes: Any,
    ) -> CacheResult:
        arguments = {name: changes.pop(name) for name in ("vocabulary_size", "encoding") if name in changes}
        args = self.settings(teacher_model_name_or_path=self.teacher, **changes)
        return write_cache(
            self.folder / to,
            load_model(self.teacher),
            self.tokenizer,
            RunData("rows", None if scored is None else AccuracyTask(), data, scored),
            args,
            CacheArguments(content=content, top_k=top_k, **arguments),
        )

    def trainer(self, data: Dataset, evaluation: Dataset | None = None, **changes: Any) -> SinKDTrainer:
        model = changes.pop("model", None) or self.student()
        given = {name: changes.pop(name) for name in ("teacher_model", "processing_class") if name in changes}
        return SinKDTrainer(
            model=model,
            args=self.settings(**changes),
            train_dataset=data,
            eval_dataset=evaluation,
            **{"processing_class": self.tokenizer, **given},
        )


@pytest.fixture
def setup(
    tmp_path: Path,
    tiny_causal_lm: Callable[..., Any],
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    marked_tokenizer: Callable[[str], Any],
) -> Callable[..., Setup]:
    def build(family: str = "llama", head: str = "", wider: bool = False, **changes: Any) -> Setup:
        if family == "llama":
            teacher = tiny_causal_lm(seed=2, layers=4, hidden=48, vocab=len(tiny_tokenizer) + 7 * wider)
            return Setup(tmp_path, lambda: tiny_causal_lm(seed=1), teacher, tiny_tokenizer)
        head = head or "SequenceClassification"
        teacher = tiny_model(family, head, seed=2, layers=4, hidden=48, **changes)
        return Setup(tmp_path, lambda: tiny_model(family, head, seed=1, **changes), teacher, marked_tokenizer(family))

    return build


def trajectory(trainer: SinKDTrainer) -> tuple[list[float], torch.Tensor]:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


FAMILIES = [
    ("llama", "", opinions(12), {}),
    ("llama", "", several_tokens(12), {}),
    ("t5", "", several_tokens(12), {}),
    ("bert", "SequenceClassification", opinions(12), {}),
    ("bert", "SequenceClassification", regression_rows(), {"num_labels": 1}),
    ("roberta", "MaskedLM", opinions(12), {}),
]
NAMES = ["decoder", "decoder-many-tokens", "encoder-decoder", "classes", "regression", "masked-lm"]


@pytest.mark.parametrize(("family", "head", "data", "changes"), FAMILIES, ids=NAMES)
def test_a_full_cache_gives_the_trajectory_of_the_teacher_itself(
    family: str, head: str, data: Dataset, changes: dict[str, Any], setup: Any
) -> None:
    own = setup(family, head, **changes)
    scope = "position" if head == "" else "batch"
    result = own.cache(data, transport_scope=scope)
    assert result.manifest.layout.content == "full"
    assert result.manifest.rows.examples == 12
    losses, weights = trajectory(own.trainer(data, teacher_model=load_model(own.teacher), transport_scope=scope))
    cached = own.trainer(data, teacher_cache=str(result.folder), transport_scope=scope)
    assert isinstance(cached.teacher, CachedTeacher)
    cached_losses, cached_weights = trajectory(cached)
    assert len(losses) == 3
    assert losses[0] != losses[1]
    assert cached_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(cached_weights, weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", ["kl", "tvd"])
def test_with_every_id_a_top_k_cache_gives_that_trajectory_too(divergence: str, setup: Any) -> None:
    own, data = setup(), several_tokens(12)
    width = own.student().config.vocab_size
    result = own.cache(data, "topk", width, encoding="float32")
    # An L1 distance has a kink wherever two probabilities meet, and there rounding chooses the side: small steps.
    settings = {"divergence": divergence, "learning_rate": 0.1}
    losses, weights = trajectory(own.trainer(data, teacher_model=load_model(own.teacher), **settings))
    cached = own.trainer(data, teacher_cache=str(result.folder), **settings)
    cached_losses, cached_weights = trajectory(cached)
    assert cached_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(cached_weights, weights, rtol=1e-5, atol=1e-5)
    assert all(e["sinkhorn/cost_width"] == 0 for e in cached.state.log_history if "sinkhorn/cost_width" in e)


def test_with_few_ids_the_losses_are_lower_bounds_and_the_width_says_by_how_much(setup: Any, caplog: Any) -> None:
    own, data = setup(), several_tokens(12)
    result = own.cache(data, "topk", 8)
    first = {}
    for name, teacher in (
        ("dense", {"teacher_model": load_model(own.teacher)}),
        ("top_k", {"teacher_cache": "cache"}),
    ):
        if "teacher_cache" in teacher:
            teacher = {"teacher_cache": str(result.folder)}
            caplog.clear()
        trainer = own.trainer(data, max_steps=1, per_device_train_batch_size=12, sinkhorn_iterations=200, **teacher)
        trainer.train()
        first[name] = next(e for e in trainer.state.log_history if "loss" in e)
    assert f"The teacher cache {result.folder} is coarse" in caplog.text
    assert "--content full would bring that to 0.05 or less" in caplog.text
    dense, top_k = first["dense"], first["top_k"]
    assert 0 < top_k["kl"] <= dense["kl"]
    assert 0 < top_k["sinkhorn/cost_width"] <= result.manifest.cost_width(2.0) + 1e-6
    assert "teacher_entropy" not in top_k
    # The regularised value is 1-Lipschitz in the cost and grows with it; here the sharp one keeps to that as well.
    assert top_k["sinkhorn"] <= dense["sinkhorn"] <= top_k["sinkhorn"] + result.manifest.cost_width(2.0)


def test_verbalizers_alone_give_the_exact_transport_term_and_a_coarse_divergence(setup: Any) -> None:
    own, data = setup(), opinions(12)
    result = own.cache(data, "verbalizers", vocabulary="verbalizers")
    assert result.manifest.layout.k == len(result.manifest.layout.always) >= 2
    settings = {"alpha": 0.0, "vocabulary": "verbalizers"}
    losses, weights = trajectory(own.trainer(data, teacher_model=load_model(own.teacher), **settings))
    cached_losses, cached_weights = trajectory(own.trainer(data, teacher_cache=str(result.folder), **settings))
    assert cached_losses == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(cached_weights, weights, rtol=0, atol=1e-4)
    both = own.trainer(data, teacher_cache=str(result.folder), vocabulary="verbalizers")
    both.train()
    assert all(math.isfinite(entry["kl"]) for entry in both.state.log_history if "kl" in entry)


def test_evaluation_needs_no_teacher_and_does_not_ask_the_cache(setup: Any) -> None:
    """Rows for evaluation may go by the ids of training rows: `row 0`, `row 1`, … where there are no ids."""
    own, data = setup(), several_tokens(12)
    result = own.cache(data)
    trainer = own.trainer(data, several_tokens(7), teacher_cache=str(result.folder))
    with_cache = trainer.evaluate()
    assert with_cache["eval_loss"] == pytest.approx(own.trainer(data, several_tokens(7)).evaluate()["eval_loss"])
    ranked = own.trainer(data, opinions(6, 100), teacher_cache=str(result.folder)).evaluate()
    assert "eval_agreement" not in ranked
    assert "eval_accuracy" in ranked or "eval_acc" in ranked


def test_a_cache_knows_what_its_teacher_chose_for_the_rows_that_it_was_scored_on(setup: Any) -> None:
    own, data, scored = setup(), opinions(12), opinions(10, 100)
    result = own.cache(data, "topk", 8, scored=scored)
    beside = own.trainer(data, scored, teacher_model=load_model(own.teacher))
    trainer = own.trainer(data, scored, teacher_cache=str(result.folder), per_device_eval_batch_size=3)
    chosen = trainer.predict(scored).predictions[1].tolist()
    assert chosen == beside.predict(scored).predictions[1].tolist() == result.manifest.teacher_score["predictions"]
    assert trainer.evaluate()["eval_agreement"] == beside.evaluate()["eval_agreement"]
    # Rows are known by what is read, in any order and by any name; of an unknown row nothing is said.
    renamed = scored.remove_columns("id").select([7, 2, 5])
    assert trainer.predict(renamed).predictions[1].tolist() == [chosen[i] for i in (7, 2, 5)]
    assert "eval_agreement" in trainer.evaluate(renamed)
    more = opinions(12, 100).map(
        lambda row, i: {"prompt": f"{row['prompt']} {i}"} if i > 9 else row, with_indices=True
    )
    assert trainer.predict(more).predictions[1].tolist() == [*chosen, -1, -1]
    assert "eval_agreement" not in trainer.evaluate(more)


def changed_score(folder: Path, **changes: Any) -> str:
    """The cache, with another record of its teacher's score."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["teacher_score"] |= changes
    path.write_text(json.dumps(manifest))
    return str(folder)


def test_a_recorded_choice_that_its_row_does_not_have_is_a_damaged_cache(setup: Any) -> None:
    own, data, scored = setup(), opinions(12), opinions(10, 100)
    cache = changed_score(own.cache(data, scored=scored).folder, predictions=[9] * 10)
    with pytest.raises(InputError, match=r"choice 9 for a row with choices 0 to 1: its manifest\.json is damaged"):
        own.trainer(data, scored, teacher_cache=cache).evaluate()


def test_the_best_model_goes_by_no_agreement_that_the_cache_does_not_know(setup: Any) -> None:
    own, data, scored = setup(), opinions(12), opinions(10, 100)
    cache = changed_score(own.cache(data, scored=scored).folder, keys=None)
    best = {"metric_for_best_model": "agreement", "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    trainer = own.trainer(data, scored, teacher_cache=cache, **best)
    assert "eval_agreement" not in trainer.evaluate()
    with pytest.raises(InputError, match=r"reports eval_loss.*by an earlier version.* has to be written again"):
        trainer.train()


def test_a_student_cut_from_the_teacher_leaves_no_teacher_behind(setup: Any) -> None:
    own, data = setup(), opinions(12)
    result = own.cache(data)
    args = own.settings(teacher_model_name_or_path=own.teacher, teacher_cache=str(result.folder), student_layers=2)
    trainer = SinKDTrainer(args=args, train_dataset=data)
    assert isinstance(trainer.teacher, CachedTeacher)
    assert trainer.model.config.num_hidden_layers == 2
    trainer.train()


def test_no_teacher_is_loaded_where_the_student_has_a_name(setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, data = setup(), opinions(12)
    result = own.cache(data)
    monkeypatch.setattr(pairing, "load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    own.trainer(data, teacher_cache=str(result.folder), teacher_model_name_or_path=own.teacher).train()


def test_fewer_rows_in_another_order_are_trained_on_and_others_are_named(setup: Any) -> None:
    own, data = setup(), opinions(12)
    result = own.cache(data)
    own.trainer(data.shuffle(seed=1).select(range(7)), teacher_cache=str(result.folder)).train()
    with pytest.raises(InputError, match=r"not in the teacher cache .*: opinion-12, opinion-13"):
        own.trainer(opinions(14), teacher_cache=str(result.folder))
    other = data.map(lambda row: {"prompt": row["prompt"].replace("Review", "Text")})
    with pytest.raises(InputError, match="have another prompt than when task 'rows' was cached"):
        own.trainer(other, teacher_cache=str(result.folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 32}, "max_length is 32 here and 1024 there"),
        ({"add_eos": True}, "add_eos is True here and None there"),
        ({"sinkhorn_temperature": 5.0}, "--temperatures 5"),
        ({"cost_norm": "sql2"}, "--content full"),
        ({"vocabulary": "verbalizers"}, "does not keep the ids"),
    ],
)
def test_a_run_that_the_cache_is_not_for_is_refused(settings: dict[str, Any], message: str, setup: Any) -> None:
    own, data = setup(), opinions(12)
    result = own.cache(data, "topk", 8)
    with pytest.raises(InputError, match=message):
        own.trainer(data, teacher_cache=str(result.folder), **settings)


def test_another_family_a_narrower_student_and_another_teacher_are_refused(
    setup: Any, tiny_causal_lm: Any, tmp_path: Path
) -> None:
    own, data = setup(wider=True), opinions(12)
    result = own.cache(data, "topk", 8)
    cache, width = str(result.folder), len(own.tokenizer)
    with pytest.raises(InputError, match=rf"vocabulary has {width} ids .* --vocabulary_size {width}"):
        own.trainer(data, teacher_cache=cache)
    narrow = own.cache(data, "topk", 8, to="narrow", vocabulary_size=width)
    own.trainer(data, teacher_cache=str(narrow.folder), max_steps=1).train()
    tiny_causal_lm(seed=9).save_pretrained(tmp_path / "other")
    own.tokenizer.save_pretrained(tmp_path / "other")
    cache = str(narrow.folder)
    with pytest.raises(InputError, match="that is the cache of"):
        own.trainer(data, teacher_cache=cache, teacher_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"given both as `teacher_model` and as `args\.teacher_cache`"):
        own.trainer(data, teacher_cache=cache, teacher_model=tiny_causal_lm(seed=9))


def test_rows_with_nan_stop_the_caching_by_name_and_the_rest_can_go_on(setup: Any, tiny_causal_lm: Any) -> None:
    own, data = setup(), opinions(12)
    teacher = load_model(own.teacher)
    with torch.no_grad():
        teacher.get_output_embeddings().weight[:] = float("nan")
    arguments = (
        own.tokenizer,
        RunData("rows", None, data, None),
        own.settings(teacher_model_name_or_path=own.teacher),
    )
    with pytest.raises(InputError, match=r"logits are NaN or infinite for opinion-\d"):
        write_cache(own.folder / "cache", teacher, *arguments, CacheArguments(content="full"))
    assert own.cache(data).manifest.complete


def test_a_cache_that_is_there_is_not_written_again(setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, data = setup(), opinions(12)
    assert own.cache(data).cached_before == 0
    from sinkd_llm.runs import cache as caching

    monkeypatch.setattr(caching, "write_rows", lambda *_: pytest.fail("rows were written again"))
    assert own.cache(data).cached_before == 12
