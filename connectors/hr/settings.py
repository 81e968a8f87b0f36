"""The settings of one HR system: a table of `verity.toml`, validated."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.hr.fields import BAMBOOHR_FIELDS, SCIM_ATTRIBUTES
from verity_sdk.http import HttpSettings
from verity_sdk.settings import ConnectorSettings, Duration, Table, Url, UrlOrDefault

PLATFORM = "hr"
LOOKBACK = timedelta(hours=24)

_FIELD = re.compile(r"[A-Za-z0-9_.]{1,100}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_.:$-]{1,200}")

Names = Annotated[tuple[str, ...], Field(strict=False)]


class BambooHr(Table):
    """BambooHR: the table `[connectors.<id>.bamboohr]`."""

    company_domain: str = Field(
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="`contoso` of https://contoso.bamboohr.com; part of the event ids.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="A user's API key; the user's access level decides what it sees."
    )
    access_token: SecretStr | None = Field(
        default=None, description="An OAuth 2.0 access token, instead of an API key."
    )
    access_token_file: Annotated[Path | None, Field(strict=False)] = Field(
        default=None,
        description="A file that holds the access token and that somebody else keeps fresh; it is "
        "read again when BambooHR refuses the token.",
    )
    api_url: UrlOrDefault = Field(
        default="",
        description="Default: https://{company_domain}.bamboohr.com/api/v1. The older gateway is "
        "https://api.bamboohr.com/api/gateway.php/{company_domain}/v1.",
    )
    fields: Names = Field(
        default=BAMBOOHR_FIELDS,
        description="The only fields of an employee that are asked for, kept and published.",
    )
    terminated_statuses: Names = Field(
        default=("Terminated",),
        min_length=1,
        description="Employment statuses that mean that somebody left; case does not count.",
    )
    concurrent_requests: int = Field(
        default=4,
        ge=1,
        le=32,
        description="Requests at once. BambooHR publishes no quota; it throttles with 429 (503 "
        "before 2026-09-16), which is waited for.",
    )

    @field_validator("fields")
    @classmethod
    def _are_fields(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(names, _FIELD)

    @field_validator("access_token_file", mode="before")
    @classmethod
    def _is_a_path(cls, value: object) -> object:
        return Path(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one_credential(self) -> BambooHr:
        given = [self.api_key, self.access_token, self.access_token_file]
        if sum(one is not None for one in given) != 1:
            raise ValueError("exactly one of api_key, access_token and access_token_file is needed")
        return self

    @property
    def url(self) -> str:
        """The root of the API, without a slash at the end."""
        return self.api_url or f"https://{self.company_domain}.bamboohr.com/api/v1"

    @property
    def has_oauth(self) -> bool:
        """Whether the employee list may be asked: its security list has OAuth only."""
        return self.api_key is None


class Bearer(Table):
    """A token that does not change."""

    kind: Literal["bearer"] = Field(description="`bearer`.")
    token: SecretStr = Field(description="The token.")


class Basic(Table):
    """HTTP Basic."""

    kind: Literal["basic"] = Field(description="`basic`.")
    user: str = Field(description="Who logs in.")
    password: SecretStr = Field(description="With what.")


class ClientCredential(Table):
    """OAuth 2.0 client credentials."""

    kind: Literal["client_credentials"] = Field(description="`client_credentials`.")
    token_url: Url = Field(description="Where tokens are issued.")
    client_id: str = Field(description="The client's id.")
    client_secret: SecretStr = Field(description="The client's secret.")
    scope: str = Field(default="", description="What is asked for; left out if not given.")
    style: Literal["form", "basic"] = Field(
        default="form",
        description="Where id and secret go: into the `form`, or into the header (`basic`).",
    )


class Scim(Table):
    """A SCIM 2.0 service provider: the table `[connectors.<id>.scim]`."""

    base_url: Url = Field(description="What stands before `/Users`, for example https://…/scim/v2.")
    name: str = Field(
        default="",
        pattern=r"^[^\s]{0,200}$",
        description="The source's name in event ids. Default: host and path of base_url.",
    )
    auth: Annotated[Bearer | Basic | ClientCredential, Field(discriminator="kind")] = Field(
        description="How to log in; its `kind` says which settings it takes."
    )
    attributes: Names = Field(
        default=SCIM_ATTRIBUTES,
        description="The only attributes of a user that are kept and published.",
    )
    request_attributes: bool = Field(
        default=True,
        description="Ask the server for these only (`attributes=`, RFC 7644, 3.9). False for a "
        "server that can't: what it sends besides is dropped on arrival either way.",
    )
    groups: bool = Field(default=True, description="Whether snapshots read /Groups.")
    page_size: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Users or groups asked for at once; fewer come where the server says so.",
    )
    full_read_every: Duration = Field(
        default=timedelta(hours=1),
        description="How often everybody is read where the server can filter by lastModified: "
        "only so is a deleted user noticed. Where it can't, every pass reads everybody.",
    )
    absence_share_max: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="If more than this share of the people (and more than ten) are gone at once, "
        "nobody is said to have left: a token that sees less looks the same.",
    )
    concurrent_requests: int = Field(default=4, ge=1, le=32, description="Requests at once.")

    @field_validator("attributes")
    @classmethod
    def _are_attributes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(names, _ATTRIBUTE)

    @property
    def source_name(self) -> str:
        """The source's name in event ids."""
        parts = urlsplit(self.base_url)
        return self.name or f"{parts.netloc}{parts.path}"


class Settings(ConnectorSettings):
    """What the connector needs to know about the HR system.

    `source` says which one it is; the table of that name holds its settings.
    """

    source: Literal["bamboohr", "scim"] = Field(
        description="`bamboohr` or `scim`; the table of that name holds the rest."
    )
    bamboohr: BambooHr | None = Field(default=None, description="Needed by source `bamboohr`.")
    scim: Scim | None = Field(default=None, description="Needed by source `scim`.")
    http: HttpSettings = Field(
        default_factory=HttpSettings,
        description="Timeouts, proxy, certificates, share of the vendor's budget.",
    )
    lookback: Duration = Field(
        default=LOOKBACK,
        description="How far before the newest change every pass asks again.",
    )
    remember: Literal["values", "hashes"] = Field(
        default="values",
        description="What the cursor keeps of each active person to see what changes: e-mail and "
        "organisation as they are, or only hashes of them. With hashes more people fit, and an "
        "event does not say what was before, nor the e-mail of somebody who was deleted.",
    )
    page_events: int = Field(default=1000, ge=1, le=10_000, description="Most events in one page.")

    @model_validator(mode="after")
    def _has_the_table_of_its_source(self) -> Settings:
        other = "scim" if self.source == "bamboohr" else "bamboohr"
        if getattr(self, self.source) is None:
            raise ValueError(f"{self.source} is missing: source `{self.source}` needs the table")
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is for source `{other}` only")
        return self


def _checked(names: tuple[str, ...], pattern: re.Pattern[str]) -> tuple[str, ...]:
    for name in names:
        if pattern.fullmatch(name) is None:
            raise ValueError("holds something that is no name of a field")
    return tuple(dict.fromkeys(names))
