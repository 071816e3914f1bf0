"""Prints the rows that the documents take from files of `python . bench card`: `python scripts/gpu_rows.py FILE...`.

A row for each card in the table of speeds, and one for each stage under each cap in the table of peaks. A figure that a card has
not is a dash.
"""

import argparse
import json
from pathlib import Path

import _pack  # noqa: F401, before what it loads
from glm_image_pack.bench.card import FAILED
from glm_image_pack.bench.table import Table, Value

GB_IN_MB = 1000


def rows_of(card: dict, bench: str) -> list[tuple[str, dict[str, Value]]]:
    """The rows of a benchmark with the dtype or format of its weights."""
    steps = [step for step in card["steps"] if step["environment"].get("bench") == bench]
    return [(weights_of(step["environment"]), row) for step in steps for table in step["tables"] for row in table["rows"]]


def weights_of(environment: dict[str, Value]) -> str:
    quantization = environment.get("quantization", "none")
    return environment["dtype"] if quantization == "none" else quantization


def speeds(card: dict) -> dict[str, Value]:
    """One row: tokens a second, seconds a guided step, seconds a picture of the VAE."""
    about = card["environment"]
    row: dict[str, Value] = {"card": about["device"], "torch": about["torch"]}
    for weights, of_ar in rows_of(card, "ar"):
        what = f"AR {weights}, {of_ar['picture']}, {of_ar['batch']} at once, tokens/s"
        row[f"{what}, one a pass"] = of_ar["tokens/s"] / of_ar["one a pass / this"]
        row[what] = of_ar["tokens/s"]
    for weights, of_dit in rows_of(card, "dit"):
        row[f"DiT {weights}, {of_dit['picture']}, {of_dit['run']}, s/step"] = of_dit["s/step"]
    for _, of_vae in rows_of(card, "vae"):
        row[f"VAE {of_vae['run']}, {of_vae['picture']}, s"] = of_vae["s"]
    wrong = [of_checks["check"] for _, of_checks in rows_of(card, "checks") if of_checks["result"] == FAILED]
    return row | {"failed checks": "; ".join(wrong) or "none"}


def peaks(card: dict) -> list[dict[str, Value]]:
    """A row for each stage under each cap, in GB."""
    rows = []
    for step in card["steps"]:
        if step["environment"].get("bench") == "memory":
            for table in step["tables"]:
                for row in table["rows"]:
                    about = {"card": card["environment"]["device"], "as": step["step"].removeprefix("peaks, ")}
                    about |= {key: row[key] for key in ("stage", "picture", "references", "quantization", "placed")}
                    figures = {key: row[key] and row[key] / GB_IN_MB for key in ("predicted", "measured")}
                    rows.append(about | figures | {"predicted / measured": row["predicted / measured"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a .json file of `python . bench card`")
    cards = [json.loads(file.read_text("utf-8")) for file in parser.parse_args().files]
    measured = [speeds(card) for card in cards]
    columns = dict.fromkeys(column for row in measured for column in row)
    print(Table("Speed", [columns | row for row in measured]).markdown())
    if found := [row for card in cards for row in peaks(card)]:
        print(f"\n{Table('Peaks in GB', found).markdown()}")


if __name__ == "__main__":
    main()
