"""The settings that an instance runs with, and who set each: the command `config`.

Settings hold no secret but what somebody wrote into an address: a user and password there are left
out, as is the cluster's data key, of which only the folder is a setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lmkv.agent.commands import Frames
from lmkv.core.clock import Deadline
from lmkv.core.config import InstanceConfig, names
from lmkv.core.messages import Command, ConfigResult, Setting

USER = re.compile(r"(?<=://)[^/?#]*@")  # and password, of an address
HIDDEN = "***@"


def handler(
    config: InstanceConfig, used: Mapping[str, str]
) -> Callable[[Command, Frames, Deadline], tuple[ConfigResult, Frames]]:
    """`used` has what settings came to that were left open, by name."""
    result = ConfigResult([_setting(config, name, used) for name in names(InstanceConfig)])

    def told(command: Command, frames: Frames, until: Deadline) -> tuple[ConfigResult, Frames]:
        return result, []

    return told


def _setting(config: InstanceConfig, name: str, used: Mapping[str, str]) -> Setting:
    value = getattr(config, name)
    found = used.get(name, "") if value in (None, "") else ""
    return Setting(name, _open(value), config.origins[name], found)


def _open(value: Any) -> Any:
    if isinstance(value, list):
        return [_open(each) for each in value]
    return USER.sub(HIDDEN, value) if isinstance(value, str) else value
