"""Tests of the cells of participants tables: ages, numbers, words and motor scales."""

import re

import numpy as np
import pytest

from tests.io.participant_tables import SCALES, cell, check_rejected, read, stops

# age


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("63,5", "a decimal comma? Write 63.5"),
        ("720", "In months? Divide by 12 and write years: 60.0"),
        ("121", "In months?"),
        ("22000", "In days? Divide by 365.25 and write years: 60.2"),
        ("720 months", "in months? Divide by 12"),
        ("720mo", "in months?"),
        ("22000 d", "in days?"),
        ("60 years", "in years? Write the number alone: 60"),
        ("060Y", "in years? Write the number alone: 60"),
        (">720", "In months?"),
    ],
)
def test_read_participants__age_unit(tmp_path, text, words):
    found = cell(tmp_path, "age", text)
    check_rejected(found, "age-unit", words, repr(text))


@pytest.mark.parametrize(
    ("text", "form", "words"),
    [
        ("1950-04-30", "age YYYY-MM-DD: a date?", ""),
        ("1950/04/30 10:00", "age YYYY/MM/DD: a date?", ""),
        ("30.04.1950", "age NN.NN.YYYY: a date?", ""),
        ("4/30/1950", "age N/NN/YYYY: a date?", ""),
        ("4/30/50", "age N/NN/NN: a date?", ""),
        ("1950-04", "age YYYY-MM: a date?", ""),
        ("19500430", "age YYYYMMDD is outside", "Is it a date?"),
        ("1950", "age YYYY is outside", "Is it a year of birth?"),
        ("1950+", "age YYYY is outside", "Is it a year of birth?"),
        ("1950.0", "age YYYY is outside", "Is it a year of birth?"),
        ("1950,0", "age YYYY is outside", "Is it a year of birth?"),
        ("1950 y", "age 'NNNN y' is outside", "Is it a year of birth?"),
    ],
)
def test_read_participants__a_date_of_birth_is_shown_nowhere(tmp_path, text, form, words):
    found = cell(tmp_path, "age", text)
    check_rejected(found, "age-unit", form, words, "Write the age at the scan in years")
    assert "1950" not in found.rejected[0].message
    assert "30" not in found.rejected[0].message


@pytest.mark.parametrize("text", ["30 Apr 1950", "30 apr 50", "born 1950", "1950-1951"])
def test_read_participants__a_text_that_tells_a_birth_is_shown_without_digits(tmp_path, text):
    (problem,) = cell(tmp_path, "age", text).rejected
    assert "N" in problem.message
    assert not {"30", "50", "51"} & set(re.findall(r"\d+", problem.message))
    assert "1950" not in problem.message


def test_read_participants__a_date_with_a_unit_in_the_sidecar_is_shown_nowhere(tmp_path):
    found = cell(tmp_path, "age", "1950-04-30", sidecar={"age": {"Units": "date"}})
    assert found.rejected[0].code == "age-unit"
    assert "age YYYY-MM-DD is in 'date'" in found.rejected[0].message
    assert "1950" not in found.rejected[0].message


@pytest.mark.parametrize(
    "text",
    ["sixty", "-3", "1e999", "inf", "-inf", "1e30", "6_0", "٦٠", "0x3c", "+", ".", "x" * 999],
)
def test_read_participants__age_that_is_no_number(tmp_path, text):
    found = cell(tmp_path, "age", text)
    check_rejected(found, "bad-number", repr(text)[:60], "or n/a")
    assert len(found.rejected[0].message) < 300


@pytest.mark.parametrize(
    ("column", "guess"), [(("708", "744"), "months"), (("22000", "19000"), "days")]
)
def test_read_participants__guesses_from_all_ages(tmp_path, column, guess):
    rows = [[f"{i}", age] for i, age in enumerate((*column, "1950"))]
    found = read(tmp_path, ["participant_id", "age"], *rows)
    assert found.table.empty
    assert [p.code for p in found.rejected] == ["age-unit"] * 3
    assert all(guess in p.message for p in found.rejected[:2])
    last = "days" if guess == "days" else "a year of birth"  # 1950 months are 162 years
    assert last in found.rejected[2].message


@pytest.mark.parametrize("units", ["months", "Days", "weeks", "decades"])
def test_read_participants__age_units_of_the_sidecar(tmp_path, units):
    header, sidecar = ["participant_id", "Age"], {"Age": {"Units": units}}
    rows = (["1", "60"], ["2", "n/a"], ["3", "89+"])
    found = read(tmp_path, header, *rows, sidecar=sidecar)
    assert list(found.table.subject) == ["sub-2"]
    assert [p.code for p in found.rejected] == ["age-unit", "age-unit"]
    assert f"in {units!r}, as the sidecar says. Convert" in found.rejected[0].message


@pytest.mark.parametrize("units", ["years", "Year", "y", ""])
def test_read_participants__age_in_years_by_the_sidecar(tmp_path, units):
    assert not cell(tmp_path, "age", "59.5", sidecar={"age": {"Units": units}}).rejected


@pytest.mark.parametrize(
    ("text", "age"), [("89+", 89), (">89", 89), ("90+", 90), ("> 89", 89), (">=90.5", 90.5)]
)
def test_read_participants__censored_ages(tmp_path, text, age):
    table = cell(tmp_path, "age", text).table
    assert list(table.age) == [age, 60]
    assert list(table.age_censored) == [True, False]


@pytest.mark.parametrize("text", ["18-38", "18 - 38", "18–38", "18 to 38", "<18"])
def test_read_participants__age_ranges(tmp_path, text):
    check_rejected(cell(tmp_path, "age", text), "age-range", repr(text), "Write the age")


@pytest.mark.parametrize("text", ["n/a", "", "NaN", "nan", "NA", "N/A"])
def test_read_participants__missing_cells(tmp_path, text):
    found = cell(tmp_path, "age", text)
    assert not found.rejected
    assert np.isnan(found.table.age[0])
    assert [(p.subject, p.code) for p in found.warnings] == [("sub-01", "missing-covariate")]
    assert "line 2" in found.warnings[0].message
    for column in ("icv", "days_post_stroke", "motor_score", "sex", "lesion_side", "paresis_side"):
        found = cell(tmp_path, column, text)
        assert not found.rejected
        assert not found.warnings
        value = found.table[column][0]
        assert value == "" if isinstance(value, str) else np.isnan(value)


# other numbers


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("icv", "1500000", "In mm3? Divide by 1000: 1500.0"),
        ("icv", "1.5", "In liters? Multiply by 1000: 1500.0"),
        ("icv", "0", "500 to 3000 mL"),
        ("icv", "1500,5", "A decimal comma? Write 1500.5"),
        ("icv", "0,500", "A decimal comma? Write 0.500"),
        ("icv", "1,450", "1450 if the comma parts thousands, 1.450 if it is a decimal comma."),
        ("icv", "1,450.5", "Write 1450.5 if the comma parts thousands."),
        ("days_post_stroke", "1,200", "Write 1200 if the comma parts thousands, 1.200 if"),
        ("days_post_stroke", "-1", "0 to 43830 days"),
        ("days_post_stroke", "3 months", "Write days as in"),
        ("days_post_stroke", "1e999", "not a finite number"),
        ("days_post_stroke", "inf", "not a finite number"),
        ("motor_score", "-0.1", "0 to 1"),
        ("motor_score", "inf", "not a finite number"),
        ("motor_score", "0,5", "Write 0.5"),
        ("normed_motor", "1.01", "0 to 1"),
        ("motor_score", "good", "n/a"),
    ],
)
def test_read_participants__bad_numbers(tmp_path, column, text, words):
    check_rejected(cell(tmp_path, column, text), "bad-number", repr(text), words)


def test_read_participants__units_of_the_sidecar_are_never_converted(tmp_path):
    found = cell(
        tmp_path, "days_post_stroke", "6", sidecar={"days_post_stroke": {"Units": "months"}}
    )
    check_rejected(found, "bad-number", "'months'", "Convert the column to days")
    for units in ("mL", "cm3"):
        assert not cell(tmp_path, "icv", "1500", sidecar={"icv": {"Units": units}}).rejected
    found = cell(tmp_path, "icv", "1500000", sidecar={"icv": {"Units": "mm3"}})
    check_rejected(found, "bad-number", "'mm3'", "Convert the column to mL")


def test_read_participants__every_problem_of_a_row(tmp_path):
    header = ["participant_id", "age", "sex", "icv"]
    found = read(tmp_path, header, ["b", "720", "7", "0"], ["a", "x", "F", "1500"])
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-b", "age-unit"),
        ("sub-b", "sex-coded"),
        ("sub-b", "bad-number"),
        ("sub-a", "bad-number"),
    ]


# words


@pytest.mark.parametrize(
    ("text", "sex"), [("F", "F"), ("m", "M"), ("Female", "F"), ("MALE", "M"), ("n/a", "")]
)
def test_read_participants__sex(tmp_path, text, sex):
    assert cell(tmp_path, "sex", text).table.sex[0] == sex


@pytest.mark.parametrize("text", ["1", "0", "O", "other", "fem", "U"])
def test_read_participants__sex_coded(tmp_path, text):
    found = cell(tmp_path, "sex", text)
    check_rejected(found, "sex-coded", f"sex {text!r}", "Write F, M or n/a", '"Levels"')


def test_read_participants__sex_by_levels(tmp_path):
    levels = {
        "1": "male",
        "2": {"Description": "Female (self-reported)"},
        "3": "other than male or female",
        "O": "other",
        "M": "mujer",
    }
    texts = ["1", "2", "2.0", "o", "3", "F", "M", "4"]
    rows = [[f"{i}", "60", text] for i, text in enumerate(texts)]
    header = ["participant_id", "age", "sex"]
    found = read(tmp_path, header, *rows, sidecar={"sex": {"Levels": levels}})
    assert list(found.table.sex) == ["M", "F", "F", "", "", "F", ""]
    assert [(p.subject, p.code) for p in found.rejected] == [("sub-7", "sex-coded")]
    assert [(p.subject, p.code) for p in found.warnings] == [
        (f"sub-{i}", "missing-covariate") for i in (3, 4, 6)
    ]
    assert "'other' by the sidecar" in found.warnings[0].message


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("reference", "reference"),
        ("Control", "reference"),
        ("HEALTHY", "reference"),
        ("stroke", "stroke"),
        ("Patient", "stroke"),
    ],
)
def test_read_participants__group(tmp_path, text, group):
    assert cell(tmp_path, "group", text).table.group[0] == group


@pytest.mark.parametrize("text", ["tumor", "1", "n/a", ".0"])
def test_read_participants__other_groups(tmp_path, text):
    check_rejected(cell(tmp_path, "group", text), "bad-number", "Write reference or stroke")


def test_read_participants__group_by_levels(tmp_path):
    sidecar = {"group": {"Levels": {"1": "Stroke", "stroke": "one unilateral stroke"}}}
    found = cell(tmp_path, "group", "1.0", sidecar=sidecar)
    assert list(found.table.group) == ["stroke", "stroke"]


@pytest.mark.parametrize("text", ["", "n/a", "a\x07b", "a\u202eb"])
def test_read_participants__bad_cohorts(tmp_path, text):
    words = "cohort is missing" if text in ("", "n/a") else "control characters"
    check_rejected(cell(tmp_path, "cohort", text), "bad-number", words)


def test_read_participants__long_cohorts(tmp_path):
    assert list(cell(tmp_path, "cohort", "é" * 300).table.cohort) == ["é" * 100, "A"]
    header = ["participant_id", "age", "site"]
    rows = (["1", "60", "x" * 100 + "1"], ["2", "60", "x" * 100 + "2"], ["3", "60", "B"])
    found = read(tmp_path, header, *rows)
    assert list(found.table.cohort) == ["B"]
    assert "Shorten both" in found.rejected[0].message


@pytest.mark.parametrize(
    ("text", "side"),
    [("L", "L"), ("right", "R"), ("Both", "bilateral"), ("brainstem", "midline"), ("none", "")],
)
def test_read_participants__lesion_side(tmp_path, text, side):
    assert cell(tmp_path, "lesion_hemisphere", text).table.lesion_side[0] == side


def test_read_participants__other_sides(tmp_path):
    check_rejected(
        cell(tmp_path, "lesion_side", "1"), "bad-number", "lesion side '1'", "Write L, R"
    )
    check_rejected(
        cell(tmp_path, "paresis_side", "up"), "bad-number", "paresis side 'up'", "or n/a"
    )
    found = cell(tmp_path, "lesion_side", "1", sidecar={"lesion_side": {"Levels": {"1": "Left"}}})
    assert found.table.lesion_side[0] == "L"


def test_read_participants__paresis_on_the_side_of_the_lesion(tmp_path):
    header = ["participant_id", "age", "lesion_side", "paresis_side"]
    sides = ["L L", "R right", "L R", "n/a n/a", "bilateral L", "midline R"]
    rows = [[f"{i}", "60", *pair.split()] for i, pair in enumerate(sides)]
    found = read(tmp_path, header, *rows)
    assert not found.rejected
    assert [(p.subject, p.code) for p in found.warnings] == [
        ("sub-0", "paresis-side"),
        ("sub-1", "paresis-side"),
    ]
    assert "lesion side R and paresis side R" in found.warnings[1].message
    assert "line 3" in found.warnings[1].message


# motor scales


def test_read_participants__mixed_scales_stop(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    way = ("participants.json", '"Scales"', "HigherIsBetter")
    rows = (["1", "60", "0.5", "FMA-UE"], ["2", "60", "0.4", "nihss"])
    stops(tmp_path, header, *rows, code="mixed-scales", words=("'FMA-UE'", "'nihss'", *way))
    rows = (["1", "60", "50", "FMA-UE"], ["2", "60", "n/a", "NIHSS"])
    stops(tmp_path, header, *rows, code="mixed-scales", words=("'50'", "'FMA-UE'", *way))
    rows = (["1", "60", "50"], ["2", "60", "0.5"])
    stops(tmp_path, header[:3], *rows, code="mixed-scales", words=("'50'", *way))


def test_read_participants__one_scale_of_0_to_1_needs_no_declaration(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    rows = (["1", "60", "0.5", "FMA-UE"], ["2", "60", "1", "fma-ue"], ["3", "60", "n/a", "NIHSS"])
    found = read(tmp_path, header, *rows)
    np.testing.assert_array_equal(found.table.motor_score, [0.5, 1, np.nan])
    assert list(found.table.motor_scale) == ["FMA-UE", "FMA-UE", ""]


def test_read_participants__declared_scales(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    rows = (
        ["1", "60", "33", "FMA-UE"],
        ["2", "60", "0", "nihss"],
        ["3", "60", "42", "NIHSS"],
        ["4", "60", "n/a", "n/a"],
        ["5", "60", "67", "FMA-UE"],
        ["6", "60", "5", "n/a"],
        ["7", "60", "1", "FMA-UE"],
    )
    found = read(tmp_path, header, *rows, sidecar=SCALES)
    np.testing.assert_array_equal(found.table.motor_score, [0.5, 1, 0, np.nan, 1 / 66])
    assert list(found.table.motor_scale) == ["FMA-UE", "NIHSS", "NIHSS", "", "FMA-UE"]
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-5", "bad-number"),
        ("sub-6", "bad-number"),
    ]
    assert "motor_score of 'FMA-UE' '67' is outside" in found.rejected[0].message
    assert "no motor_scale. Write one of 'FMA-UE', 'NIHSS'" in found.rejected[1].message


def test_read_participants__declared_scale_without_a_column(tmp_path):
    header, row = ["participant_id", "age", "motor_score"], ["1", "60", "33"]
    one = {"motor_score": {"Scales": {"FMA": {"Maximum": 66.0, "HigherIsBetter": True}}}}
    found = read(tmp_path, header, row, ["2", "60", "n/a"], sidecar=one)
    assert found.table.motor_score[0] == 0.5
    assert list(found.table.motor_scale) == ["FMA", ""]
    words = ("'FMA-UE', 'NIHSS'", "column motor_scale")
    stops(tmp_path, header, row, sidecar=SCALES, code="mixed-scales", words=words)


def test_read_participants__normed_scores_keep_the_names_of_their_scales(tmp_path):
    header = ["BIDS_ID", "AGE", "NORMED_MOTOR", "motor_scale"]
    rows = (["1", "60", "0.5", "FMA-UE"], ["2", "60", "0.4", "NIHSS"], ["3", "60", "0.4", "n/a"])
    found = read(tmp_path, header, *rows, ["4", "60", "0.4", "N\x01IHSS"])
    assert list(found.table.motor_scale) == ["FMA-UE", "NIHSS", ""]
    assert "motor_scale 'N\\x01IHSS' holds control characters" in found.rejected[0].message


def test_read_participants__undeclared_scale_beside_declared_ones(tmp_path):
    header, row = ["participant_id", "age", "motor_score", "motor_scale"], ["1", "60", "3", "ARAT"]
    words = ("'ARAT'", "'NIHSS'", "Declare each one")
    stops(tmp_path, header, row, sidecar=SCALES, code="mixed-scales", words=words)


@pytest.mark.parametrize(
    "scale",
    [
        5,
        {},
        {"Maximum": 0, "HigherIsBetter": True},
        {"Maximum": float("nan"), "HigherIsBetter": True},
        {"Maximum": float("inf"), "HigherIsBetter": True},
        {"Maximum": 10**400, "HigherIsBetter": True},
        {"Maximum": True, "HigherIsBetter": True},
        {"Maximum": "66", "HigherIsBetter": True},
        {"Maximum": 66, "HigherIsBetter": "yes"},
    ],
)
def test_read_participants__bad_declarations(tmp_path, scale):
    header, row = ["participant_id", "age", "motor_score"], ["1", "60", "3"]
    sidecar = {"motor_score": {"Scales": {"X": scale}}}
    words = ("scale 'X'", "Maximum above 0")
    stops(tmp_path, header, row, sidecar=sidecar, code="mixed-scales", words=words)


def scaled(folder, *scores, column="motor_score", maximum=66, declared="motor_score"):
    rows = [[f"{i}", "60", score] for i, score in enumerate(scores)]
    scales = {"FMA": {"Maximum": maximum, "HigherIsBetter": True}}
    sidecar = {declared: {"Scales": scales}}
    return [folder, ["participant_id", "age", column], *rows], {"sidecar": sidecar}


def test_read_participants__fractions_of_a_declared_scale_stop(tmp_path):
    fractions = ("0", "0.5", "1", ".25", "n/a", "0.9", "1.0")
    args, sidecar = scaled(tmp_path, *fractions)
    words = ("'FMA' are fractions already: none of 5 is above 1 (as '0.5')", "Maximum of 66")
    stops(*args, **sidecar, code="mixed-scales", words=(*words, '"Maximum": 1'))
    for good in ((*fractions, "2"), ("1", "1", "0", "1", "1", "1"), ("0.5", "1")):
        args, sidecar = scaled(tmp_path, *good)
        assert not read(*args, **sidecar).rejected
    args, sidecar = scaled(tmp_path, *fractions, maximum=1)
    assert read(*args, **sidecar).table.motor_score[1] == 0.5


def test_read_participants__normed_scores_are_never_divided(tmp_path):
    for declared in ("motor_score", "NORMED_MOTOR"):
        args, sidecar = scaled(tmp_path, "0.5", "n/a", column="NORMED_MOTOR", declared=declared)
        table = read(*args, **sidecar).table
        np.testing.assert_array_equal(table.motor_score, [0.5, np.nan])
        assert list(table.motor_scale) == ["FMA", ""]
    args, sidecar = scaled(tmp_path, "33", "0.5", column="NORMED_MOTOR")
    assert [p.code for p in read(*args, **sidecar).rejected] == ["bad-number"]


def test_read_participants__levels_under_the_name_of_the_variable(tmp_path):
    sidecar = {"lesion_side": {"Levels": {"x": "left"}}}
    assert cell(tmp_path, "LESION_HEMISPHERE", "x", sidecar=sidecar).table.lesion_side[0] == "L"


# levels in other languages, and against the words themselves


def sexes(folder, levels, *texts):
    rows = [[f"{i}", "60", text] for i, text in enumerate(texts)]
    sidecar = {"sex": {"Levels": levels}}
    return read(folder, ["participant_id", "age", "sex"], *rows, sidecar=sidecar)


@pytest.mark.parametrize(
    "levels",
    [
        {"F": "weiblich", "M": "männlich"},
        {"F": "weiblich", "M": "ma\u0308nnlich"},
        {"F": "Frau", "M": "Man"},
        {"female": "kobieta", "F": "kobieta", "M": "mężczyzna"},
        {"F": "biologically female", "M": "biologically male"},
    ],
)
def test_read_participants__sexes_whose_levels_are_in_other_words(tmp_path, levels):
    found = sexes(tmp_path, levels, "F", "m", "M")
    assert list(found.table.sex) == ["F", "M", "M"]
    assert not found.warnings


@pytest.mark.parametrize("meaning", ["fähig", "männlich", "fa\u0308hig", "not male"])
def test_read_participants__a_part_of_a_word_is_no_sex(tmp_path, meaning):
    found = sexes(tmp_path, {"1": meaning}, "1")
    assert list(found.table.sex) == [""]
    assert [p.code for p in found.warnings] == ["missing-covariate"]


def test_read_participants__a_level_that_is_neither_sex(tmp_path):
    levels = {"F": "female", "M": "missing"}
    assert list(sexes(tmp_path, levels, "F", "M").table.sex) == ["F", ""]


def test_read_participants__a_sex_that_the_sidecar_contradicts(tmp_path):
    found = sexes(tmp_path, {"F": "male", "M": "Biological female"}, "F", "M", "female")
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-0", "sex-coded"),
        ("sub-1", "sex-coded"),
    ]
    assert "sex 'F' is 'male' by the sidecar, the other sex. Correct" in found.rejected[0].message


def test_read_participants__the_levels_of_a_code_win_over_that_of_enigma(tmp_path):
    levels = {"1": "right", "2": "Left hemisphere", "3": "links", "5": "left or right", "6": "both"}
    sidecar = {"LESIONED_HEMISPHERE": {"Levels": levels}}
    header = ["BIDS_ID", "AGE", "LESIONED_HEMISPHERE"]
    rows = [[f"{i}", "60", text] for i, text in enumerate(["1", "2.0", "3", "4", "5", "6"])]
    table = read(tmp_path, header, *rows, sidecar=sidecar).table
    assert list(table.lesion_side) == ["R", "L", "bilateral", "midline", "midline", "bilateral"]


@pytest.mark.parametrize(
    ("column", "word", "meaning"),
    [("group", "control", "stroke"), ("lesion_side", "L", "Right"), ("paresis_side", "r", "left")],
)
def test_read_participants__a_word_that_the_sidecar_contradicts_stops(
    tmp_path, column, word, meaning
):
    sidecar = {column: {"Levels": {word: meaning}}}
    header, good = ["participant_id", "age", column], {"group": "stroke"}.get(column, "n/a")
    shown = f"{column.replace('_', ' ')} {word!r} is {meaning!r} by participants.json"
    words = (shown, "contradicts the word itself. Correct its Levels")
    stops(tmp_path, header, ["1", "60", word], sidecar=sidecar, words=words)
    assert not read(tmp_path, header, ["1", "60", good], sidecar=sidecar).rejected
