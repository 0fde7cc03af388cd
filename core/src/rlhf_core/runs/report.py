from pathlib import Path


def write_report(directory: Path) -> Path:
    (directory / "report.html").write_text("")
    return directory / "report.html"
