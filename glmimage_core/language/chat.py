"""A chat model behind an OpenAI-compatible endpoint: llama.cpp, vLLM, Ollama, z.ai and others."""

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from ..endpoint import Endpoint, Refused, client_of, watched
from ..images import to_png

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_BYTES = 4 * 1024 * 1024  # of an answer as it comes over the wire
MAX_SIDE = 1024  # pixels of a picture that is sent


def chat_endpoint(base_url: str, model: str, key: str = "", timeout: float = 120.0, retries: int = 2) -> Endpoint:
    """Where a chat model is. Raises ValueError for an address that is none, and without a model."""
    if not model.strip():
        raise ValueError("the name of the model is empty")
    return Endpoint(base_url, model, key, timeout, retries)


def complete(
    endpoint: Endpoint,
    instruction: str,
    request: str,
    pictures: Sequence[Image.Image] = (),
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """What the model answers. pictures go along in order, made smaller to MAX_SIDE pixels a side at most.

    progress(pieces so far, max_tokens) is called several times a second, also before anything has come; what it raises stops the
    request. Raises EndpointError, and ImportError that says what to install.
    """
    client = client_of(endpoint, "text/event-stream", MAX_BYTES, endpoint.retries)
    pieces: list[str] = []

    def fetch() -> AsyncIterator[str]:
        return _pieces(client, endpoint.model, instruction, request, pictures, temperature, seed, max_tokens)

    for piece in watched(fetch, client, endpoint, lambda: progress(min(len(pieces), max_tokens), max_tokens)):
        pieces.append(piece)
    return "".join(pieces)


async def _pieces(
    client: "AsyncOpenAI", model, instruction, request, pictures, temperature, seed, max_tokens
) -> AsyncIterator[str]:
    shown = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
    content = [*shown, {"type": "text", "text": request}] if shown else request
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": instruction}, {"role": "user", "content": content}],
        temperature=temperature,
        seed=seed % 2**63,  # which is as large as the protocol has them
        max_tokens=max_tokens,
        stream=True,
    )
    ended = False
    async for event in stream:
        for choice in event.choices[:1]:
            ended = ended or choice.finish_reason is not None
            if choice.delta.content:
                yield choice.delta.content
    if not ended:
        raise Refused("broke off in the middle of its answer")


def _data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return f"data:image/png;base64,{base64.b64encode(to_png(small)).decode()}"
