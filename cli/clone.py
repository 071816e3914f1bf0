"""What only a clone of the repository has: the package of ComfyUI's registry leaves it out, see .comfyignore."""

from pathlib import Path

TRAINING = Path(__file__).resolve().parents[1] / "training"


def check_training(command: str) -> None:
    """Raise FileNotFoundError where this copy of the pack cannot train and score."""
    if not TRAINING.is_dir():
        raise FileNotFoundError(
            f"`python . {command}` needs the folder training, which ComfyUI's registry leaves out; run it in a clone of the "
            "repository"
        )
