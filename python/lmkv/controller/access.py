"""Who may reach a controller: its keys, the clients that it lets in, and where it may listen.

`Access(config)` reads what the settings name, `reload()` reads it again. Raises ConfigError.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from lmkv.core import keyfiles, tokens
from lmkv.core.config import ConfigError, ControllerConfig
from lmkv.core.keyfiles import BadKeys
from lmkv.core.web_settings import WebSettings

WEB = "web"  # the name of web processes, by their keys


class Access:
    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._folder = Path(config.keys)
        self.pair: keyfiles.Pair | None = None
        self._clients: dict[bytes, str] = {}
        self.tokens = config.tokens  # the file; "": there are none
        try:
            if config.keys:
                self.pair = keyfiles.read_pair(self._folder, keyfiles.SERVER)
            self.reload()
        except BadKeys as error:
            setting = "tokens" if config.tokens and str(error).startswith(config.tokens) else "keys"
            given = getattr(config, setting)
            raise ConfigError(
                f"{setting} = {given!r} ({config.origins[setting]}): {error}"
            ) from None
        # The same for all controllers with these keys: a web process asks the others, too.
        self._web = None if self.pair is None else keyfiles.derived(self.pair, "web")
        self._check_certificate()

    def reload(self) -> None:
        """Raises BadKeys; what was known before holds then."""
        clients: dict[bytes, str] = {}
        if self._config.keys:
            clients = keyfiles.read_clients(self._folder)
            beside = self._folder / keyfiles.TOKENS
            if not self.tokens and beside.exists():  # a file that goes opens nothing
                self.tokens = str(beside)
        if self.tokens:
            tokens.read(Path(self.tokens))  # the web process's; what is wrong is said here
        self._clients = clients

    def name_of(self, public: bytes) -> str | None:
        if self._web is not None and public == self._web.public:
            return WEB
        return self._clients.get(public)

    def web(self) -> WebSettings:
        config = self._config
        settings = WebSettings(
            tokens=self.tokens,
            cert=config.http_cert,
            key=config.http_key,
            rate=config.http_rate,
            log=config.log,
            compat=config.compat,
        )
        if self.pair is not None and self._web is not None:
            settings.public, settings.secret = self._web
            settings.server = self.pair.public
        return settings

    def _check_certificate(self) -> None:
        cert, key = self._config.http_cert, self._config.http_key
        if not cert and not key:
            return
        missing = "http_key" if cert else "http_cert"
        if not (cert and key):
            raise ConfigError(f"{missing} = '': allowed is a file, since the other one is named")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigError(
                f"http_cert = {cert!r}, http_key = {key!r} ({self._config.origins['http_cert']}): "
                f"{error.strerror if isinstance(error, OSError) and error.strerror else error}"
            ) from None
        mode = Path(key).stat().st_mode & 0o777
        if mode & 0o007:
            raise ConfigError(
                f"http_key = {key!r} ({self._config.origins['http_key']}): mode is {mode:04o}, "
                f"others can use it; must be 0600 or 0640"
            )

    # ------------------------------------------------------------ addresses

    def state_host(self) -> str:
        return self._address("host", self.pair is not None, "name keys (lmkv keys init)")

    def http_host(self) -> str:
        return self._address("http_host", bool(self.tokens), "name tokens (lmkv keys token)")

    def warnings(self) -> list[str]:
        """What the operator should know of what is served in spite of it."""
        found = []
        if not _is_loopback(self.state_host()) and self.pair is None:
            found.append(f"host = {self._config.host}: whoever reaches it may do anything")
        if self._config.web and not _is_loopback(self.http_host()):
            if not self.tokens:
                found.append(f"http_host = {self._config.http_host}: whoever reaches it may ask")
            if not self._config.http_cert:
                found.append(
                    f"http_host = {self._config.http_host}: tokens and answers cross the network "
                    f"in plain text; http_cert and http_key encrypt them"
                )
        return found

    def _address(self, setting: str, authenticated: bool, how: str) -> str:
        """The address that a setting names, with brackets where they belong."""
        given = getattr(self._config, setting)
        host = "127.0.0.1" if given == "localhost" else given.strip("[]")
        try:
            ipaddress.ip_address(host)
            good = authenticated or self._config.insecure or _is_loopback(host)
        except ValueError:
            good = False
        if not good:
            raise ConfigError(
                f"{setting} = {given!r} ({self._config.origins[setting]}): allowed is a loopback "
                f"address (127.0.0.1, ::1, localhost); for another one {how}, or say insecure"
            )
        return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.strip("[]")).is_loopback


def reachable(host: str) -> str:
    """What this machine's own processes connect to when it listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
