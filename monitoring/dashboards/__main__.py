"""Writes the dashboards as JSON beside this file: `python -m monitoring.dashboards`."""

import json
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parent


def texts() -> dict[str, str]:
    """The JSON of each dashboard by the name of its file, as it is written."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    from monitoring.dashboards import batching, model, service

    boards = {"service": service, "batching": batching, "model": model}
    return {
        f"{name}.json": json.dumps(board.dashboard(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
        for name, board in boards.items()
    }


def main() -> int:
    try:
        made = texts()
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error.name} is not installed: make .venv/dev.installed\n")
        return 2
    for name, text in made.items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{DIRECTORY.name}/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
