import threading

LOCK = threading.Lock()


class TooFew(ValueError):
    pass


def twice(number: int) -> int:
    if number < 0:
        raise TooFew(f"{number} rows")
    with LOCK:
        return 2 * number
