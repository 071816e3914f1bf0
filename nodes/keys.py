"""Keys of services: from an environment variable whose name a workflow gives, and only to the hosts that may see it.

A workflow may come from anyone. If it could name a variable and an address, it could have any secret of the machine sent
anywhere: so each key goes to the hosts it belongs to, and to those that whoever runs the machine has allowed it.
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
    """The key in an environment variable, for an address; "" where no variable is named.

    Raises ValueError for a variable that is not set, and for a host that its key is not to be sent to.
    """
    if not variable.strip():
        return ""
    name, host = variable.strip(), (urlsplit(address).hostname or "").lower()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a key's variable; one ends with _API_KEY, _KEY or _TOKEN, such as OPENAI_API_KEY"
        )
    allowed = [*HOSTS_OF.get(name, ()), *os.environ.get(f"{name}_HOSTS", "").lower().replace(",", " ").split()]
    if host not in allowed and not _is_loopback(host):
        raise ValueError(
            f"the key in {name} may not be sent to {host}; if it should be, set the environment variable {name}_HOSTS to {host} "
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
