"""Prints the rows that the documents take from files of `python . bench card`: `python scripts/gpu_rows.py FILE...`.

Speed has a row for each figure and a column for each file, peaks have a row for each stage under each cap. A figure that was
not measured is a dash.
"""

import argparse
import json
from pathlib import Path

import _pack  # noqa: F401, before what it loads
from glm_image_pack.bench.card import NOT_HERE, OK
from glm_image_pack.bench.table import Table, Value

MB_IN_GB = 1000


def rows_of(card: dict, bench: str) -> list[tuple[str, dict[str, Value]]]:
    """The rows of a benchmark, each with the precision or the format of the weights."""
    steps = [step for step in card["steps"] if step["environment"].get("bench") == bench]
    return [(weights_of(step["environment"]), row) for step in steps for table in step["tables"] for row in table["rows"]]


def weights_of(environment: dict[str, Value]) -> str:
    quantization = environment.get("quantization", "none")
    return environment["dtype"] if quantization == "none" else quantization


def speeds(card: dict) -> dict[str, Value]:
    """The figures of one file by what they say."""
    figures = {}
    for weights, row in rows_of(card, "ar"):
        what = f"AR {weights}, {row['picture']}, {row['batch']} at once, tokens/s"
        figures[what] = row["tokens/s"]
        figures[f"{what}, one a pass"] = row["tokens/s"] / row["one a pass / this"]
    for weights, row in rows_of(card, "dit"):
        figures[f"DiT {weights}, {row['picture']}, {row['run']}, s/step"] = row["s/step"]
    for weights, row in rows_of(card, "vae"):
        figures[f"VAE {weights}, {row['picture']}, {row['run']}, s"] = row["s"]
    wrong = [f"{step['step']}: {step['reason']}" for step in card["steps"] if step["result"] not in (OK, NOT_HERE)]
    return figures | {"what failed": "; ".join(wrong) or "nothing"}


def peaks(card: dict) -> list[dict[str, Value]]:
    """A row for each stage under each cap, in GB."""
    found = []
    for step in card["steps"]:
        if step["environment"].get("bench") == "memory":
            for row in (row for table in step["tables"] for row in table["rows"]):
                about = {"measured on": card["environment"]["device"], "card": step["step"].removeprefix("peaks, ")}
                about |= {key: row[key] for key in ("stage", "picture", "references", "quantization", "placed")}
                figures = {key: row[key] and row[key] / MB_IN_GB for key in ("predicted", "measured")}
                found.append(about | figures | {"predicted / measured": row["predicted / measured"]})
    return found


def speed_table(cards: list[dict]) -> Table:
    columns = [f"{number}. {card['environment']['device']}" for number, card in enumerate(cards, start=1)]
    measured = dict(zip(columns, map(speeds, cards), strict=True))
    names = dict.fromkeys(name for figures in measured.values() for name in figures)
    return Table("Speed", [{"": name} | {column: measured[column].get(name) for column in columns} for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a .json file of `python . bench card`")
    cards = [json.loads(file.read_text("utf-8")) for file in parser.parse_args().files]
    for number, card in enumerate(cards, start=1):
        about = ", ".join(f"{key} {value}" for key, value in card["environment"].items())
        print(f"{number}. {about}")
    print(f"\n{speed_table(cards).markdown()}")
    if found := [row for card in cards for row in peaks(card)]:
        print(f"\n{Table('Peaks in GB', found).markdown()}")


if __name__ == "__main__":
    main()
