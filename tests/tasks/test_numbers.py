"""Rows of numbers from CSV files: what is read, and where an error lies, as an editor counts lines."""

import numpy as np
import pytest

from quickstudy.errors import DataError
from quickstudy.tasks.tabular.numbers import read_inputs, read_support


def written(path, text: str):
    (path / "rows.csv").write_text(text, encoding="utf-8")
    return path / "rows.csv"


def test_headers_and_blank_lines_count_as_lines(tmp_path):
    path = written(tmp_path, "a,b\n\n1,2\n\n\n3,4\n")
    x, names, rows = read_inputs(path)
    assert rows.to_dict("list") == {"a": ["1", "3"], "b": ["2", "4"]}
    assert np.array_equal(x, [[1, 2], [3, 4]]) and names == [f"{path}:3", f"{path}:6"]
    assert read_inputs(written(tmp_path, "1,2\n3,4\n"))[1] == [f"{path}:1", f"{path}:2"]


def test_a_line_break_in_quotes_moves_what_follows(tmp_path):
    path = written(tmp_path, '"a\nlong header",b\n1,2\n3,4\n')
    assert read_inputs(path)[1] == [f"{path}:3", f"{path}:4"]


def test_the_mark_of_utf_8_is_no_part_of_the_first_number(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf1,2\n3,4\n")
    assert read_inputs(tmp_path / "rows.csv")[0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n\n3,zero\n", "line 4 of .* has 'zero' where a number, such as 1234.5, is expected"),
        ("a,b\n\n1,2\n3\n", "line 4 of .* has 1 columns, line 3 has 2"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_an_error_names_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_inputs(written(tmp_path, text))


def test_the_last_column_of_a_support_set_is_the_answer(tmp_path):
    x, y, notes = read_support(written(tmp_path, "a,b,y\n1,2,cat\n3,4,dog\n"), True)
    assert notes == []
    assert x.tolist() == [[1, 2], [3, 4]] and y.tolist() == ["cat", "dog"]
    values = read_support(written(tmp_path, "1,2,5\n3,4,6\n"), False)[1]
    assert values.tolist() == [[5], [6]]
    with pytest.raises(DataError, match=r"line 3 of .* has 'dog'"):
        read_support(written(tmp_path, "a,b,y\n1,2,1\n3,4,dog\n"), False)
    with pytest.raises(DataError, match="at least two columns"):
        read_support(written(tmp_path, "1\n2\n"), True)
