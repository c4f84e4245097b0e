"""The `RayCluster` block as Prefect's form shows it."""

from prefect_ray_worker import RayCluster


def test_no_field_of_the_form_is_a_pair_of_toggles_for_a_value_or_null() -> None:
    """The form showed `password | null`; a field that stays empty means the same."""
    fields = RayCluster.model_json_schema()["properties"]
    assert [name for name, field in fields.items() if "type" not in field] == []
    assert fields["token"]["format"] == "password"
    assert RayCluster(address="http://head:8265").token is None
