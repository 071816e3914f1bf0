"""Bytes as people read them."""


def human_bytes(count: float) -> str:
    """Bytes in decimal units: 512 B, 1.5 kB, 20.0 MB, 13.90 GB."""
    if count < 1e3:
        return f"{count:.0f} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.95 * size:  # from there on, one decimal would show 1000.0
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"
