"""CSV files as people have them: each row comes out as it went in, or with a reason."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nrg_sampler.training.csv_table import read_csv
from nrg_sampler.training.preferences import read_preferences

HEADER = "path_A,path_B,prompt,VQ,MQ\n"


def read(folder, text):
    file = folder / "pairs.csv"
    file.write_bytes(text.encode())
    return read_csv(file)


def prompts(table):
    return {line: row["prompt"] for line, row in table.rows}


def reasons(table):
    return {bad.row: bad.reason for bad in table.bad}


def test_a_row_with_more_or_fewer_cells_than_the_header_is_bad(tmp_path):
    table = read(tmp_path, "path_A,path_B,VQ,MQ,prompt\n0,1,A,B,a cat, sitting\n2,3,B,A,a dog\n4,5,A\n")
    assert prompts(table) == {3: "a dog"}
    assert reasons(table) == {
        2: "has 6 cells, but the header has 5; quote a cell that holds commas",
        4: "has 3 cells, but the header has 5; quote a cell that holds commas",
    }


def test_spaces_around_names_cells_and_quotes_are_left_out(tmp_path):
    table = read(tmp_path, 'path_A, path_B , prompt,VQ, MQ\n0, 1, "a cat, asleep" , A,B \n2,3,\ta dog,B,A\n')
    assert table.columns == ("path_A", "path_B", "prompt", "VQ", "MQ")
    assert table.rows[0] == (2, {"path_A": "0", "path_B": "1", "prompt": "a cat, asleep", "VQ": "A", "MQ": "B"})
    assert table.rows[1] == (3, {"path_A": "2", "path_B": "3", "prompt": "a dog", "VQ": "B", "MQ": "A"})
    assert not table.bad


def test_a_lone_quote_costs_its_own_row_alone(tmp_path):
    table = read(
        tmp_path, HEADER + '0,1,a cat,A,B\n2,3,"he said hi,A,B\n4,5,a dog,B,B\n6,7,"she said yo,B,A\n8,9,a bee,A,B\n'
    )
    assert prompts(table) == {2: "a cat", 4: "a dog", 6: "a bee"}
    assert "text after a closing quote" in reasons(table)[3]
    assert "opens a quote that is not closed" in reasons(table)[5]
    inner = read(tmp_path, HEADER + '0,1,"6" nails,A,B\n2,3,6" nails,A,B\n4,5,"6"" nails",A,B\n')
    assert list(reasons(inner)) == [2]
    assert prompts(inner) == {3: '6" nails', 4: '6" nails'}


def test_rows_that_quotes_merge_are_bad_and_a_text_of_two_lines_is_not(tmp_path):
    table = read(tmp_path, HEADER + '0,1,"he said,A,B\n2,3,a nail of 6",A,B\n4,5,"one,\ntwo",A,B\n6,7,x,A,B\n')
    assert "line breaks and several commas, up to line 3; a quote that is not closed merges rows" in reasons(table)[2]
    assert prompts(table) == {4: "one,\ntwo", 6: "x"}


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_delimiter_is_named(tmp_path, delimiter, name):
    with pytest.raises(
        ValueError, match=f"Expected commas between the columns of .*, but its header has {name}; save"
    ):
        read(tmp_path, HEADER.replace(",", delimiter) + delimiter.join("01xAB") + "\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Expected a CSV file with a header, but .* is empty"),
        ("path_A,prompt,prompt\n", "has the column prompt twice; repair it"),
        ('path_A,"prompt\n', "it opens a quote that is not closed"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, text)
    (tmp_path / "latin.csv").write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"Expected a CSV file in UTF-8, but .*latin\.csv cannot be read"):
        read_csv(tmp_path / "latin.csv")


def test_byte_order_marks_line_ends_and_empty_lines_change_nothing(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        lines = ["path_A,path_B,prompt,VQ,", "", "0,1,a cat,A,", "", "2,3,a dog,B,"]
        table = read(tmp_path, "\ufeff" + end.join(lines))
        assert table.columns == ("path_A", "path_B", "prompt", "VQ", "")
        assert prompts(table) == {3: "a cat", 5: "a dog"}
        assert set(table.rows[0][1]) == {"path_A", "path_B", "prompt", "VQ"}


def test_rows_of_nothing_but_blanks_are_passed_over(tmp_path):
    blanks = (",,,,", " , ,\t,,", '"","",,"  ",', ",,", '"\n",,,,')
    table = read(tmp_path, "\n".join([",,,,", HEADER.strip(), "0,1,a cat,A,B", *blanks, "2,3,a dog,B,A", ",,,,"]))
    assert prompts(table) == {3: "a cat", 10: "a dog"}
    assert not table.bad


def test_a_null_byte_in_a_prompt_is_bad_and_named(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.mp4").touch()
    (tmp_path / "pairs.csv").write_bytes(f"{HEADER}0.mp4,1.mp4,a c\0at,A,B\n2.mp4,3.mp4,a dog,B,A\n".encode())
    table = read_preferences(tmp_path / "pairs.csv")
    assert [pair.prompt for pair in table.pairs] == ["a dog"]
    assert [str(bad) for bad in table.bad] == [
        "row 2: has a null byte in its prompt, which is no text; save the file in UTF-8"
    ]


CELLS = st.lists(
    st.text(st.sampled_from('aB "\n\r,;\t\u00e9\ufeff') | st.characters(exclude_categories=["Cs"]), max_size=12),
    min_size=3,
    max_size=3,
)


def written(rows, quoting, end="\r\n"):
    stream = io.StringIO()
    csv.writer(stream, quoting=quoting, lineterminator=end).writerows([("one", "two", "three"), *rows])
    return stream.getvalue()


@given(st.lists(CELLS, max_size=6), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@example([["a\n,,", "b", "c"], ["d", "e", "f"]], csv.QUOTE_MINIMAL)
def test_rows_come_out_as_they_went_in_or_with_a_reason(tmp_path_factory, rows, quoting):
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    table = read(tmp_path_factory.getbasetemp(), written(rows, quoting))
    got = {line: [row[name] for name in ("one", "two", "three")] for line, row in table.rows}
    lines = sorted([*got, *reasons(table)])
    assert len(lines) == len(set(lines)) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        if line in got:
            assert got[line] == [cell.strip() for cell in row]
        else:
            assert "line breaks and several commas" in reasons(table)[line]
            assert any(cell.count(",") > 1 for cell in row)


@given(st.text(st.sampled_from('aB,"\n\r ;\t') | st.characters(exclude_categories=["Cs"]), max_size=80))
@example('"')
@example(' "" x\n,"\n"')
def test_any_text_is_rows_and_reasons(tmp_path_factory, text):
    table = read(tmp_path_factory.getbasetemp(), "one,two,three\n" + text)
    assert all(set(row) == {"one", "two", "three"} for _, row in table.rows)
    assert all(bad.reason for bad in table.bad)
    covered = [line for line, _ in table.rows] + [bad.row for bad in table.bad]
    assert len(covered) == len(set(covered))


PATHS = st.sampled_from(["0.mp4", "1.mp4", "2.mp4", "gone.mp4", "", " ", "x" * 300, "a\0b", "../0.mp4"])
LABEL = st.sampled_from(["A", "B", "same", "invalid", "", " A ", "a", "0.5"])
NUMBER = st.sampled_from(["8", "", "nan", "inf", "-1", "1e400", "fast"])
PAIR = st.tuples(PATHS, PATHS, st.text(max_size=12), LABEL, LABEL, LABEL, NUMBER)


@given(
    st.lists(PAIR, max_size=6),
    st.text(st.sampled_from('"\n,; x'), max_size=6),
    st.sampled_from([None, ["VQ"], ["own"]]),
)
def test_any_preference_file_is_pairs_reasons_or_a_sentence(tmp_path_factory, rows, garbage, axes):
    folder = tmp_path_factory.getbasetemp()
    for index in range(3):
        (folder / f"{index}.mp4").touch()
    stream = io.StringIO()
    csv.writer(stream).writerows([("path_A", "path_B", "prompt", "VQ", "own", "Overall", "fps_A"), *rows])
    (folder / "pairs.csv").write_bytes((stream.getvalue() + garbage).encode())
    try:
        table = read_preferences(folder / "pairs.csv", axes)
    except ValueError as error:
        sentence = str(error)
    else:
        sentence = table.describe()
        given_rows = {(row[0], row[1], row[2].strip(), row[3].strip()) for row in rows}
        labels = {1.0: "A", -1.0: "B", 0.0: "same"}
        for pair in table.pairs if axes != ["own"] else []:
            label = labels.get(pair.preference[0])
            matching = [row for row in given_rows if row[2] == pair.prompt and row[:2] == names(pair, folder)]
            assert any(row[3] == label or label is None for row in matching)
    assert sentence.startswith(("Expected", "axes "))


def names(pair, folder):
    return pair.first.relative_to(folder).as_posix(), pair.second.relative_to(folder).as_posix()


def test_a_file_in_utf_16_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "pairs.csv").write_bytes("path_A,path_B,prompt,VQ\na,b,c,A\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"pairs.csv cannot be read: it is in UTF-16; save it in UTF-8\."):
        read_csv(tmp_path / "pairs.csv")
