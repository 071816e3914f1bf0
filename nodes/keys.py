"""Keys of services: a workflow names the environment variable that holds a key, and each key goes to its own hosts only.

A workflow may come from anyone. If it could pair any variable with any address, it could send every secret of the machine
anywhere. So a key goes to the hosts of its service, to this machine, and to the hosts that the owner of the machine allows.
"""

import ipaddress
import os
import re
from urllib.parse import urlsplit

HOSTS_OF = {
    "OPENAI_API_KEY": ("api.openai.com",),
    "ZAI_API_KEY": ("api.z.ai",),
    "ZHIPUAI_API_KEY": ("open.bigmodel.cn",),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
}
_NAME = re.compile(r"[A-Z][A-Z0-9_]*_(?:API_)?(?:KEY|TOKEN)")


def key_for(variable: str, address: str) -> str:
    """The key in an environment variable, to be sent to an address; "" if no variable is named.

    Raises ValueError for a variable that is not set, for a name that is not one of a key, and for a host that is not allowed.
    """
    if not variable.strip():
        return ""
    name, host = variable.strip(), (urlsplit(address).hostname or "").lower()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of a key's variable; it must end with _API_KEY, _KEY or _TOKEN, as OPENAI_API_KEY does"
        )
    allowed = [*HOSTS_OF.get(name, ()), *os.environ.get(f"{name}_HOSTS", "").lower().replace(",", " ").split()]
    if host not in allowed and not _is_loopback(host):
        raise ValueError(
            f"the key in {name} may not be sent to {host}; to allow it, set the environment variable {name}_HOSTS to {host} "
            "before ComfyUI starts"
        )
    if not (key := os.environ.get(name, "").strip()):
        raise ValueError(f"the environment variable {name} is not set; set it to the key before ComfyUI starts")
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
