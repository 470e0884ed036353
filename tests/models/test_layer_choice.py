"""Which layers are kept: an idle one goes first, and what is measured is what the model's own hidden states say."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models import select_layers
from sinkd_llm.models.layer_choice import by_answers, by_influence, influences
from sinkd_llm.models.layer_stacks import layer_stacks, layers_of, short_lists
from sinkd_llm.models.layers import view_of_layers
from sinkd_llm.models.outputs import probe_outputs
from tests.support.models import same_weights

IDS = torch.arange(2, 14)[None]


def idle(layer: nn.Module) -> None:
    """Makes a layer add nothing to what it reads: the last weights of its sublayers are zeros."""
    ends = ("o_proj", "down_proj", "c_proj", "SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo", "fc2")
    ends += ("out_proj",)
    for name, module in layer.named_modules():
        if name.endswith(ends):
            for weight in module.parameters():
                nn.init.zeros_(weight)


def loud(model: Any) -> Any:
    """With weights large enough that no layer but an idle one hardly changes anything."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "shared" not in name:
                weight.mul_(8)
    return model


def moves(model: Any) -> Callable[[Any], float]:
    """How far the outputs of a view are from those of the whole model."""
    whole = probe_outputs(model)
    return lambda view: float((probe_outputs(view) - whole).square().mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_layer_that_adds_nothing_is_dropped_first(
    tiny_causal_lm: Callable[..., Any], family: str, which: int
) -> None:
    model = loud(tiny_causal_lm(family, layers=4))
    (stack,) = layers_of(model, layer_stacks(model)).values()
    idle(stack[which])
    rest = [index for index in range(4) if index != which]
    found = by_influence(model, {"": 3}, lambda: model(IDS), rows=1)
    assert found.kept == {"": rest}
    assert found.influence[""][which] == pytest.approx(0, abs=1e-6)
    assert min(found.influence[""][index] for index in rest) > 1e-3
    greedy = by_answers(model, {"": 2}, moves(model), rows=1)
    assert greedy.drops[0] == ("", which, pytest.approx(0, abs=1e-10))
    assert greedy.drops[1][2] > 1e-6
    assert torch.allclose(probe_outputs(select_layers(model, rest)), probe_outputs(model), atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "pegasus"])
def test_both_stacks_are_chosen_each_by_itself(tiny_model: Callable[..., Any], family: str) -> None:
    model = loud(tiny_model(family, layers=4))
    stacks = layers_of(model, layer_stacks(model))
    idle(stacks["encoder"][2])
    idle(stacks["decoder"][1])
    kept = {"encoder": [0, 1, 3], "decoder": [0, 2, 3]}
    wanted = {"encoder": 3, "decoder": 3}
    assert by_answers(model, wanted, moves(model), rows=1).kept == kept
    found = by_influence(model, wanted, lambda: model(input_ids=IDS, decoder_input_ids=IDS[:, :5]), rows=1)
    assert found.kept == kept
    student = select_layers(model, *found.kept.values())
    assert torch.allclose(probe_outputs(student), probe_outputs(model), atol=1e-4)


def test_the_first_layer_of_t5_stays(tiny_model: Callable[..., Any]) -> None:
    model = loud(tiny_model("t5", layers=3))
    stacks = layers_of(model, layer_stacks(model))
    idle(stacks["encoder"][0])
    idle(stacks["decoder"][0])
    found = by_influence(model, {"encoder": 1, "decoder": 2}, lambda: model(IDS, decoder_input_ids=IDS), rows=1)
    assert found.kept["encoder"] == [0]
    assert 0 in found.kept["decoder"]
    greedy = by_answers(model, {"encoder": 2, "decoder": 1}, moves(model), rows=1)
    assert greedy.kept["decoder"] == [0]
    assert 0 in greedy.kept["encoder"]
    with pytest.raises(InputError, match="1, 2 of the encoder's layers leave out layer 0"):
        select_layers(model, [1, 2], [0])


def test_influence_is_what_the_models_own_hidden_states_say(tiny_causal_lm: Callable[..., Any]) -> None:
    model = loud(tiny_causal_lm(layers=4))
    rows = [IDS, IDS[:, 3:8]]
    stacks = layers_of(model, layer_stacks(model))
    found = influences(stacks, lambda: [model(row) for row in rows])
    assert all(not layer._forward_hooks for layer in stacks[""])
    total = torch.zeros(3, dtype=torch.float64)
    for row in rows:
        # The last of them is after the model's norm, so the last layer has no twin here.
        states = model(row, output_hidden_states=True).hidden_states[:-1]
        for layer, (before, after) in enumerate(pairwise(states)):
            a, b = before[0].double(), after[0].double()
            total[layer] += ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).sum()
    expected = 1 - total / sum(row.shape[1] for row in rows)
    assert found[""][:3] == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_view_computes_what_the_student_will_without_a_copy(tiny_causal_lm: Callable[..., Any], family: str) -> None:
    changes = {"scale_attn_by_inverse_layer_idx": True} if family == "gpt2" else {}
    model = tiny_causal_lm(family, layers=4, **changes)
    before = model.config.to_dict()
    view = view_of_layers(model, {"": [1, 3]})
    assert torch.equal(probe_outputs(view), probe_outputs(select_layers(model, [1, 3])))
    ours = {weight.data_ptr() for weight in model.parameters()}
    assert {weight.data_ptr() for weight in view.parameters()} < ours
    assert model.config.to_dict() == before
    assert view.config.num_hidden_layers == 2


def test_a_view_of_diffllama_takes_the_constants_of_its_new_places() -> None:
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    model = DiffLlamaForCausalLM(DiffLlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2)).eval()
    view = view_of_layers(model, {"": [2, 3]})
    assert [layer.self_attn.lambda_init for layer in view.model.layers] == [
        layer.self_attn.lambda_init for layer in model.model.layers[:2]
    ]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


def test_the_model_is_as_it_was_after_an_error(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm(layers=4)
    own, before = model.model.layers, probe_outputs(model)

    def fails(view: Any) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        by_answers(model, {"": 2}, fails, rows=1)
    with pytest.raises(RuntimeError, match="out of memory"), short_lists(model, layer_stacks(model), {"": [0]}):
        fails(model.model.layers)
    with pytest.raises(IndexError), short_lists(model, layer_stacks(model), {"": [0, 9]}):
        fails(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        influences({"": own}, lambda: fails(model(IDS)))
    assert model.model.layers is own
    assert len(own) == model.config.num_hidden_layers == 4
    assert not any(layer._forward_hooks for layer in own)
    assert torch.equal(probe_outputs(model), before)


def test_layers_that_cannot_go_are_passed_over() -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_experts": 4}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2, "moe_intermediate_size": 8}
    config = Qwen2MoeConfig(**size, shared_expert_intermediate_size=8, decoder_sparse_step=2)
    model = Qwen2MoeForCausalLM(config).eval()
    # Without the last one the others still alternate.
    assert by_answers(model, {"": 3}, moves(model), rows=1).kept == {"": [0, 1, 2]}


def test_what_gives_no_influence_is_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm(layers=3)
    with pytest.raises(InputError, match="Layer 0 does not run on the training rows"):
        by_influence(model, {"": 2}, lambda: None, rows=0)
    nn.init.constant_(model.model.layers[1].mlp.down_proj.weight, float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        by_influence(model, {"": 2}, lambda: model(IDS), rows=1)
    for choose in (by_influence, by_answers):
        with pytest.raises(InputError, match="Cannot take 4 layers from a model that has 3"):
            choose(model, {"": 4}, lambda *_: 0.0, 1)


def test_the_choice_in_words_and_in_json(tiny_causal_lm: Callable[..., Any]) -> None:
    model = loud(tiny_causal_lm(layers=3))
    idle(model.model.layers[1])
    found = by_influence(model, {"": 2}, lambda: model(IDS), rows=5)
    assert found.in_words().startswith(
        "The student has the layers 0, 2 of 3, those that most change what they read, over 5 training rows; dropped, "
        "with 1 - cosine: 1 ("
    )
    said = by_answers(model, {"": 2}, moves(model), rows=5).as_dict()
    assert said["kept"] == {"layers": [0, 2]}
    assert said["of"] == {"layers": 3}
    assert [drop["layer"] for drop in said["drops"]] == [1]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "No index of the layers is given; give at least one from 0 to 3"),
        ([0, 4], "The index 4 of the layers to keep is none of this model's, which has 4"),
        ([-1, 2], "The index -1 of the layers to keep is none"),
        ([0, 2, 2], "The index 2 of the layers to keep is given twice"),
        ([2, 0], "The index 0 of the layers to keep stands after 2; .*: 0, 2"),
    ],
)
def test_wrong_indices(tiny_causal_lm: Callable[..., Any], layers: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_layers(tiny_causal_lm(layers=4), layers)


def test_listed_layers_are_those(tiny_causal_lm: Callable[..., Any], tiny_model: Callable[..., Any]) -> None:
    model = tiny_causal_lm(layers=4)
    student = select_layers(model, [1, 2])
    assert same_weights(student.model.layers[0], model.model.layers[1])
    assert same_weights(student.model.layers[1], model.model.layers[2])
    t5 = select_layers(tiny_model("t5", layers=4), [0, 3], [0, 1, 2])
    assert (t5.config.num_layers, t5.config.num_decoder_layers) == (2, 3)
