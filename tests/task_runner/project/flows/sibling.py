def hello() -> str:
    return "sibling"
