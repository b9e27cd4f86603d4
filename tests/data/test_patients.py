"""Patient keys and subgroups from file names."""

from __future__ import annotations

import pytest

from pneumonia.data.patients import group_of, join_patients, patient_keys, patient_of
from pneumonia.errors import ConfigError, DataError


@pytest.mark.parametrize(
    "one, other",
    [
        ("person12_bacteria_3.jpeg", "person12_virus_9.jpeg"),
        ("person447_virus_921_1.jpeg", "person447_bacteria_2.jpeg"),
        ("person007_virus_1.jpeg", "person7_virus_2.jpeg"),
        ("IM-0115-0001.jpeg", "NORMAL2-IM-0115-0001.jpeg"),
        ("IM-0115-0001.jpeg", "IM-0115-0001-0002.jpeg"),
        ("NORMAL2-IM-0587-0001-0001.jpeg", "IM-587-0003.jpeg"),
    ],
)
def test_the_bare_number_is_the_patient(one: str, other: str) -> None:
    assert patient_of(one) is not None
    assert patient_of(one) == patient_of(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("person1_virus_6.jpeg", "person11_virus_6.jpeg"),
        ("IM-0115-0001.jpeg", "IM-1150-0001.jpeg"),
        ("person115_virus_1.jpeg", "IM-0115-0001.jpeg"),
    ],
)
def test_other_numbers_and_other_families_are_other_patients(one: str, other: str) -> None:
    assert None not in (patient_of(one), patient_of(other))
    assert patient_of(one) != patient_of(other)


@pytest.mark.parametrize("name", ["scan.jpeg", "00001.png", "export-IM-0001-0001.jpg", "a_person12_virus_1.jpeg"])
def test_names_of_other_data_sets_carry_no_patient(name: str) -> None:
    assert patient_of(name) is None


@pytest.mark.parametrize(
    "name, group",
    [
        ("person447_virus_921_1.jpeg", "virus"),
        ("person1_bacteria_1.jpeg", "bacteria"),
        ("IM-0115-0001.jpeg", "IM"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2"),
        ("my_virus_scan.jpeg", "other"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_without_a_key_the_error_names_the_images_and_every_way_out() -> None:
    with pytest.raises(DataError) as error:
        patient_keys(["person1_virus_1.jpeg", "scan.jpeg"], [None, None], "auto", None)
    assert error.value.exit_code == 3
    for part in ("1 of 2", "scan.jpeg", "data.patient_regex=", "patient_id", "data.patients=unknown"):
        assert part in str(error.value)


def test_unknown_patients_stand_alone_even_under_one_number() -> None:
    keys, origin = patient_keys(["person1_virus_1.jpeg", "person1_virus_2.jpeg"], [None, None], "unknown", None)
    assert origin == "unknown"
    assert len(set(keys)) == 2


def test_the_regex_goes_before_the_table_and_the_table_before_names() -> None:
    names = ["p7-a.png", "p7-b.png"]
    assert patient_keys(names, ["x", "y"], "auto", r"p(\d+)") == (["7", "7"], "data.patient_regex")
    names = ["person1_virus_1.jpeg", "person1_virus_2.jpeg"]
    assert patient_keys(names, ["x", "y"], "auto", None) == (["x", "y"], "labels.csv")


def test_keys_never_come_from_two_places() -> None:
    with pytest.raises(DataError, match=r"person1_virus_2\.jpeg"):
        patient_keys(["person1_virus_1.jpeg", "person1_virus_2.jpeg"], ["1", None], "auto", None)


@pytest.mark.parametrize("regex", ["p(", r"p\d+"])
def test_a_regex_that_cannot_name_a_patient_is_a_configuration_error(regex: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.patient_regex"):
        patient_keys(["p1.png"], [None], "auto", regex)


def test_an_image_of_two_patients_makes_them_one() -> None:
    keys = ["a", "b", "c", "d"]
    assert join_patients(keys, []) == keys
    joined = join_patients(keys, [("b", "c"), ("c", "a"), ("a", "b")])
    assert joined == ["a", "a", "a", "d"]
