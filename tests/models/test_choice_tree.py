"""Choices as a tree: what begins alike is one node."""

import random

from sinkd_llm.models.kinds.choice_tree import choice_tree


def beginnings(choices: tuple[tuple[int, ...], ...]) -> set[tuple[int, ...]]:
    return {choice[:n] for choice in choices for n in range(1, len(choice))}


def test_a_tree_by_hand() -> None:
    tree = choice_tree(((8, 10), (7,), (8, 9, 1), (11, 12), (8,)))
    assert tree.tokens == (8, 9, 11)
    assert tree.parents == (0, 1, 0)
    assert tree.sources == ((0, 1), (0,), (0, 1, 2), (0, 3), (0,))
    assert tree.paths == ((1, 2), (3,))
    assert tree.path_QT.tolist() == [[1, 2], [3, 0]]
    assert tree.new_QT.tolist() == [[True, True], [True, False]]
    assert tree.seen_MM.tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert tree.ending() == [(8, 9, 1), (11, 12)]


def test_choices_of_one_token_have_no_nodes() -> None:
    tree = choice_tree(((7,), (8,), (9,)))
    assert (tree.tokens, tree.rows, tree.paths) == ((), 1, ((),))
    assert tree.path_QT.shape == (1, 0)


def test_every_beginning_is_one_node_and_every_path_leads_there() -> None:
    draw = random.Random(3)
    for _ in range(30):
        choices = tuple({tuple(draw.choices(range(3), k=draw.randint(1, 6))) for _ in range(draw.randint(1, 20))})
        tree = choice_tree(choices)
        assert choice_tree(tuple(choices)) is tree, "made once"
        read: list[tuple[int, ...]] = [()]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            read.append((*read[parent], token))
        assert len(read) == len({*read}) == tree.rows
        assert {*read[1:]} == beginnings(choices)
        for choice, sources in zip(choices, tree.sources, strict=True):
            assert [read[source] for source in sources] == [choice[:n] for n in range(len(choice))]
        # Branch after branch, so that the new nodes of the paths are all nodes in their order.
        assert tree.path_QT[tree.new_QT].tolist() == [*range(1, tree.rows)]
        for path, choice in zip(tree.paths, tree.ending(), strict=True):
            assert choice in choices
            assert choice[:-1] == (read[path[-1]] if path else ())


def test_pieces_hold_each_choice_once_and_are_small() -> None:
    draw = random.Random(4)
    choices = tuple({tuple(draw.choices(range(4), k=draw.randint(1, 5))) for _ in range(60)})
    tree = choice_tree(choices)
    assert tree.pieces(10_000) == [(tree, [*range(len(choices))])]
    pieces = tree.pieces(12)
    assert len(pieces) > 3
    assert sorted(c for _, numbers in pieces for c in numbers) == [*range(len(choices))]
    for piece, numbers in pieces:
        assert piece.choices == tuple(choices[c] for c in numbers)
        assert len(piece.tokens) <= 12
    assert sum(piece.rows for piece, _ in pieces) < 1.5 * tree.rows
