"""Values of the kinds that people and programs really put where something else was meant."""

from hypothesis import strategies as st

# Numbers at the edges of types, of ranges, and of what text can hold.
NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "-0.5", "1e-30", "1e30", "-1e30", "1e308", "1e309", "nan", "inf", "-inf", "NaN"),
    *("2147483648", "9223372036854775808", "-9223372036854775809", "1_000", "0x10", "1,5", "١", "1e", "--1", "+3"),
    *("9" * 5_000, "0" * 400 + "1", "1." + "0" * 400),
)
WORDS = (
    *("", " ", "none", "None", "null", "true", "false", "yes", "no", "auto", "nope", "[]", "{}", "[1", '{"a": 1}'),
    *("a=b", "\x1b[31mred\x1b[0m", "\x07", "\x9b31m", "\u202eabc", "é", "日本", "../..", "/", "~", ".", "x" * 3_000),
    *('{"a": {"b": [1, 2', "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "{{ 7 * 7 }}", "%s", "'", '"', "\\", "a\nb"),
)
numbers = st.sampled_from(NUMBERS)
words = st.sampled_from(WORDS)
flag_values = numbers | words | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
# Text as it stands in files: any character that UTF-8 can hold.
texts = st.text(st.characters(codec="utf-8"), max_size=40)
python_values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | words
    | st.sampled_from([[], {}, [1], {"a": 1}, (1, 2), b"x", object, 1j, {1}, ["x", None], 10**5_000])
)
json_scalars = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | texts
json_values = st.recursive(
    json_scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=4
)
