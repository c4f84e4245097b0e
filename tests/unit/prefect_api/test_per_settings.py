from prefect.settings import PREFECT_API_URL, Settings, temporary_settings

from prefect_ray_worker.prefect_api.compat.workers import settings_as_variables
from prefect_ray_worker.prefect_api.per_settings import PerSettings


def test_a_value_is_made_once_for_the_same_settings_and_again_for_others() -> None:
    made: list[Settings] = []
    count = PerSettings(lambda settings: made.append(settings) or len(made))

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert [count(), count()] == [1, 1]
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:2/api"}):
            assert [count(), count()] == [2, 2]
        assert count() == 3


def test_variables_are_those_of_the_present_settings() -> None:
    for url in ("http://127.0.0.1:1/api", "http://127.0.0.1:2/api"):
        with temporary_settings({PREFECT_API_URL: url}):
            assert settings_as_variables()["PREFECT_API_URL"] == url
            assert settings_as_variables() is settings_as_variables()
