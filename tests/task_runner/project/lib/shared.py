def hello() -> str:
    return "package"
