def hello() -> str:
    return "path"
