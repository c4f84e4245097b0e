"""What several packages of the monorepo share."""


def rows_of(day: int) -> int:
    """Stand for what takes long on one day's data."""
    return day * 100
