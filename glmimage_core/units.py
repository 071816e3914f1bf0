"""Bytes as people read them."""


def human_bytes(count: float) -> str:
    """Bytes in decimal units: 512 B, 1.5 kB, 20.0 MB, 13.90 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
