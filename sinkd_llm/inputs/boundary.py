"""Where a prompt and its answer are parted in a text, and whether the tokens of the answer depend on the prompt."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Boundary:
    """
    Tells for which answers the tokens are the same alone as behind a prompt.

    A tokenizer cuts a text into pieces, mostly words, and makes tokens of each by itself. Where a piece begins with
    the answer, its tokens are those of the answer alone. Where the piece of the prompt's end goes on into the answer
    (some vocabularies know no pieces), they are so as well if the tokens come from merges: a merge over the boundary
    either takes place, and then the answer is read alone anyway, or it does not, and then the merges on one side do
    not know of the other side.

    An answer has to begin with one space, and the prompt to end without one: the last character is then all of the
    prompt that the place of the boundary can depend on.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of both; of one without pieces in Rust nothing is known.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
        # Such a token would take the answer's space along.
        if backend is not None and any(token.rstrip for token in tokenizer.added_tokens_decoder.values()):
            backend = None
        self._backend = backend
        model: Any = getattr(backend, "model", None)
        self._merges = type(model).__name__ == "BPE" and not model.dropout and not model.ignore_merges
        self._known: dict[tuple[str, str], bool] = {}

    def parts(self, prompt: str, answer: str) -> bool:
        """Whether `answer` is certainly the same tokens alone as after `prompt`."""
        last = prompt[-1:]
        if self._backend is None or last.isspace() or answer[:1] != " " or answer[1:2].isspace():
            return False
        key = (last, answer)
        if key not in self._known:
            self._known[key] = self._parts(*key)
        return self._known[key]

    def _parts(self, last: str, answer: str) -> bool:
        end, begin, both = (self._normalised(text) for text in (last, answer, last + answer))
        if both != end + begin:
            return False
        end_pieces, begin_pieces, pieces = (self._pieces(text) for text in (end, begin, both))
        if pieces == end_pieces + begin_pieces:
            return True
        joined = [*end_pieces[:-1], "".join((*end_pieces[-1:], *begin_pieces[:1])), *begin_pieces[1:]]
        return self._merges and pieces == joined

    def _normalised(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _pieces(self, text: str) -> list[str]:
        cutter = self._backend.pre_tokenizer
        if cutter is None or not text:
            return [text] if text else []
        return [piece for piece, _ in cutter.pre_tokenize_str(text)]
