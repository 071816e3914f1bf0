"""Keys of services: a workflow names the environment variable that holds a key, and each key goes to its own hosts only.

A workflow may come from anyone. If it could pair any variable with any address, it could send every secret of the machine
anywhere. So a key goes to the hosts of its service and to the hosts that the owner of the machine allows. Any program of any user
may listen on a port of this machine, so only keys that are meant for servers on it go there.
"""

import os
import re

from ..glmimage_core.endpoint import is_key, is_loopback, may_have_key, split_address

HOSTS_OF = {
    "OPENAI_API_KEY": ("api.openai.com",),
    "ZAI_API_KEY": ("api.z.ai",),
    "ZHIPUAI_API_KEY": ("open.bigmodel.cn",),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
}
# Keys of servers that people run themselves; GLM_IMAGE_... is for whoever needs another one.
LOCAL = ("OLLAMA_API_KEY", "LLAMA_API_KEY", "VLLM_API_KEY", "SGLANG_API_KEY", "LM_API_TOKEN")
LOCAL_PREFIX = "GLM_IMAGE_"
PICTURE_HOSTS = "GLM_IMAGE_PICTURE_HOSTS"  # hosts from which pictures may be fetched that an answer names by their address
_NAME = re.compile(r"[A-Z][A-Z0-9_]*_(?:API_)?(?:KEY|TOKEN)")


def key_for(variable: str, address: str) -> str:
    """The key in an environment variable, to be sent to an address; "" if no variable is named.

    Raises ValueError for an address that no key may go to, for a variable that is not set or whose value is no key, for a name
    that is not one of a key, and for a host that is not allowed. No message repeats a value, or what may be a key in place of a
    name.
    """
    if not variable.strip():
        return ""
    name, parts = variable.strip(), split_address(address)
    host = (parts.hostname or "").lower()
    if not _NAME.fullmatch(name):
        raise ValueError(
            "key_variable is not the name of a key's variable; it must end with _API_KEY, _KEY or _TOKEN, as OPENAI_API_KEY does"
        )
    allowed = [*HOSTS_OF.get(name, ()), *_hosts_in(f"{name}_HOSTS")]
    if is_loopback(host) and (name in LOCAL or name.startswith(LOCAL_PREFIX)):
        allowed.append(host)
    if host not in allowed:
        raise ValueError(
            f"the key in {name} may not be sent to {host}; to allow it, set the environment variable {name}_HOSTS to {host} "
            "before ComfyUI starts"
        )
    if not may_have_key(parts):
        raise ValueError(f"the key in {name} goes to {host} by https:// only; correct the address")
    if not (key := os.environ.get(name, "").strip()):
        raise ValueError(f"the environment variable {name} is not set; set it to the key before ComfyUI starts")
    if not is_key(key):
        raise ValueError(
            f"the environment variable {name} contains a line break, a space or a character that is not ASCII within the key; "
            "set it to the key alone"
        )
    return key


def picture_hosts() -> tuple[str, ...]:
    """The hosts from which the owner of the machine lets pictures be fetched."""
    return tuple(_hosts_in(PICTURE_HOSTS))


def _hosts_in(variable: str) -> list[str]:
    return os.environ.get(variable, "").lower().replace(",", " ").split()
