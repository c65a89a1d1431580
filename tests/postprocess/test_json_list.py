"""Reading a JSON list piece by piece gives what reading it whole gives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.postprocess import json_list
from mrcnn_tf.postprocess.json_list import list_items

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
values = st.recursive(
    leaves,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(values, max_size=6),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(1, 40),
    st.text(" \n\t\r"),
)
@settings(max_examples=150, deadline=None)
def test_values_and_their_places(tmp_path_factory, data, indent, ascii_only, chunk, blank):
    path = tmp_path_factory.mktemp("list") / "list.json"
    text = blank + json.dumps(data, indent=indent, ensure_ascii=ascii_only) + blank
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_CHUNK", chunk)
        items = list(list_items(path))
    assert [value for _, _, value in items] == data
    whole = path.read_bytes()
    assert [json.loads(whole[start:stop]) for start, stop, _ in items] == data


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of entries"),
        ('{"images": []}', "must be a list of entries"),
        ("[", "entry 0: not valid JSON"),
        ('[{"a": 1}, {"a": ', "entry 1: not valid JSON .*is the file complete"),
        ('[{"a": 1}, {"a": "xyz', "entry 1: not valid JSON .*is the file complete"),
        ('[{"a": 1}, {"a": 1}', "entry 1: not valid JSON .the list does not end"),
        ('[{"a": 1} {"a": 1}]', "entry 1: not valid JSON before it, at byte 10"),
        ('[{"a": 1},]', "entry 1: not valid JSON"),
        ('[{"a" 1}' + ", {}" * 100 + "]", "entry 0: not valid JSON"),
        ("[]\n]", "something after the end"),
        ('["\xff"]', "entry 0: not valid UTF-8"),
    ],
)
def test_damage_is_told(tmp_path, monkeypatch, chunk, text, message):
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        list(list_items(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_syntax_error_is_told_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "_CHUNK", 100)
    path = tmp_path / "r.json"
    path.write_text('[{"a" 1}' + ", {}" * 10**5 + "]")
    with pytest.raises(ValueError, match="Expecting ':' delimiter, byte 6"):
        list(list_items(path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        next(list_items(tmp_path / "r.json"))
