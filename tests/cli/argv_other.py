FILES: dict[str, str] = {}
LINES: list[str] = []
