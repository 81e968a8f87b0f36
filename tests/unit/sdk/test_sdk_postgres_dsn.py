"""Addresses of PostgreSQL as vendors hand them out, and every parameter of libpq's."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args
from hypothesis import given
from hypothesis import strategies as st

from verity_sdk.errors import Misconfigured
from verity_sdk.postgres_dsn import PARAMETERS, Address, Use, read_address, secrets_in

SETTING = "VERITY_DATABASE__DSN"
DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def read(text: str) -> Address:
    return read_address(text, SETTING)


def tried(text: str) -> tuple[Address | None, str]:
    """The address, or the error's text."""
    try:
        return read(text), ""
    except Misconfigured as error:
        return None, str(error)


def as_asyncpg_reads(address: Address) -> tuple[object, object]:
    """What asyncpg itself makes of it: places, and everything else."""
    found: tuple[object, object] = _parse_connect_dsn_and_args(
        dsn=address.dsn,
        host=None,
        port=None,
        user=None,
        password=None,
        passfile=None,
        database=None,
        ssl=address.arguments().get("ssl"),
        service=None,
        servicefile=None,
        direct_tls=None,
        server_settings=dict(address.session),
        target_session_attrs=None,
        krbsrvname=None,
        gsslib=None,
    )
    return found


# As vendors hand them out; names and passwords are ours. "read": in the named page, as stored on
# 2026-11-30. "known": the form in use, its page not looked at again.
HANDED_OUT = {
    # read: neon.com/faqs/connect-application-using-connection-string
    "neon": (
        "postgresql://alex:AbC123dEf@ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech/"
        "dbname?sslmode=require&channel_binding=require",
        ("alex", "AbC123dEf", "dbname", "ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech"),
    ),
    # known: neon.com/docs/connect/connection-errors, for clients without SNI
    "neon, endpoint": (
        "postgresql://alex:AbC123dEf@ep-cool.us-east-2.aws.neon.tech/dbname"
        "?sslmode=require&options=endpoint%3Dep-cool",
        ("alex", "AbC123dEf", "dbname", "ep-cool.us-east-2.aws.neon.tech"),
    ),
    # read: supabase.com/docs/guides/database/connecting-to-postgres; known: pgbouncer=true
    "supabase, transaction": (
        "postgres://postgres.apbkobhfnmcqqzqeeqss:s3cr-et@aws-0-eu-west-1.pooler.supabase.com:6543/"
        "postgres?pgbouncer=true",
        (
            "postgres.apbkobhfnmcqqzqeeqss",
            "s3cr-et",
            "postgres",
            "aws-0-eu-west-1.pooler.supabase.com",
        ),
    ),
    # learn.microsoft.com, flexible server, Connect: psql
    # known: the portal's form for psql; read: its ports, in learn.microsoft.com's training
    "azure, psql": (
        r"host=shop.postgres.database.azure.com port=5432 dbname=postgres user=boss "
        r"password='it\'s a \\' sslmode=require",
        ("boss", "it's a \\", "postgres", "shop.postgres.database.azure.com"),
    ),
    # known: devcenter.heroku.com/articles/heroku-postgresql, DATABASE_URL
    "heroku": (
        "postgres://u1:p1@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?sslmode=require",
        ("u1", "p1", "d1", "ec2-1-2-3-4.compute-1.amazonaws.com"),
    ),
    # read: the folder of the socket in cloud.google.com/sql/docs/postgres/samples; known: as a URI
    "cloud sql": (
        "postgresql://app:pw@/shop?host=/cloudsql/project:europe-west1:instance",
        ("app", "pw", "shop", "/cloudsql/project:europe-west1:instance/.s.PGSQL.5432"),
    ),
    # read: sslmode in aiven.io/developer/query-a-postgresql-database; known: the service URI
    "aiven": (
        "postgres://avnadmin:pw@pg-1.aivencloud.com:12691/defaultdb?sslmode=require",
        ("avnadmin", "pw", "defaultdb", "pg-1.aivencloud.com"),
    ),
    # known: docs.crunchybridge.com/how-to/connect, no parameters
    "crunchy": (
        "postgres://application:pw@p.abcdefgh.db.postgresbridge.com:5432/postgres",
        ("application", "pw", "postgres", "p.abcdefgh.db.postgresbridge.com"),
    ),
    # read: docs.sliplane.io/databases/getting-started: the machine's roots
    "system roots": (
        "postgres://jonas:pw@x.sliplane.app:1234/mydb?sslmode=verify-full&sslrootcert=system",
        ("jonas", "pw", "mydb", "x.sliplane.app"),
    ),
}


@pytest.mark.parametrize("vendor", HANDED_OUT)
def test_what_a_vendor_hands_out_reaches_asyncpg_as_it_is_meant(vendor: str) -> None:
    text, wanted = HANDED_OUT[vendor]
    places, parameters = as_asyncpg_reads(read(text))
    place = places[0]  # type: ignore[index]
    assert (
        parameters.user,  # type: ignore[attr-defined]
        parameters.password,  # type: ignore[attr-defined]
        parameters.database,  # type: ignore[attr-defined]
        place if isinstance(place, str) else place[0],
    ) == wanted
    assert set(parameters.server_settings) <= {"options"}  # type: ignore[attr-defined]


def test_neons_own_string_says_what_can_not_be_kept() -> None:
    address = read(HANDED_OUT["neon"][0])
    assert address.parameters["sslmode"] == "require"
    assert len(address.warnings) == 1
    assert address.warnings[0].startswith("channel_binding=require can't be kept")


def test_the_machines_roots_verify_certificate_and_name() -> None:
    context = read(HANDED_OUT["system roots"][0]).arguments()["ssl"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_rds_roots_are_a_file(tmp_path: Path) -> None:
    bundle = tmp_path / "global-bundle.pem"
    text = f"host=db.rds.amazonaws.com sslmode=verify-full sslrootcert={bundle}"
    with pytest.raises(Misconfigured, match="sslrootcert: there is no such file"):
        read(text)
    bundle.write_text("")
    assert read(text).parameters["sslrootcert"] == str(bundle)


def test_several_hosts_each_with_its_port() -> None:
    address = read("postgresql://u@a,b:6000,[::1]/d?target_session_attrs=read-write")
    assert address.hosts == [("a", 5432), ("b", 6000), ("::1", 5432)]
    places, _ = as_asyncpg_reads(address)
    assert places == [("a", 5432), ("b", 6000), ("::1", 5432)]
    assert read("host=a,b port=6000").hosts == [("a", 6000), ("b", 6000)]
    assert [one.hosts for one in address.each_host()] == [[place] for place in address.hosts]


def test_a_service_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "services"
    path.write_text("[shop]\nhost=db\npassword=a%b;c\nconnect_timeout=7\n")
    monkeypatch.setenv("PGSERVICEFILE", str(path))
    address = read("postgresql:///orders?service=shop")
    assert address.hosts == [("db", 5432)]
    assert address.parameters == {"password": "a%b;c", "dbname": "orders"}
    assert address.connect_seconds == 7
    with pytest.raises(Misconfigured, match="service: the file of services has none"):
        read("service=other")


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", ["1", "require", "true", "disable", "/no/file"])
def test_every_parameter_is_taken_or_named(name: str, value: str) -> None:
    for text in (f"postgresql://u:very-secret@h/d?{name}={quote(value)}", f"{name}={value}"):
        address, error = tried(text)
        if address is None:
            assert name in error or f"sslmode={value}" in error
            assert error.startswith(f"{SETTING}: ")
            assert "\n" not in error
            assert "very-secret" not in error
        else:
            _, parameters = as_asyncpg_reads(address)
            left = set(parameters.server_settings or {})  # type: ignore[attr-defined]
            assert left <= {n for n, p in PARAMETERS.items() if p.use is Use.SESSION}


def test_an_unknown_name_is_the_servers_to_judge() -> None:
    assert read("postgresql://h/d?statement_timeout=5s").session == {"statement_timeout": "5s"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("very-secret", "no PostgreSQL address"),
        ("Server=h;Database=d;Port=5432;Password=very-secret;", "no PostgreSQL address"),
        ("jdbc:postgresql://h:5432/d?password=very-secret", "JDBC"),
        ("postgresql+asyncpg://u:very-secret@h/d", "must begin with postgresql://"),
        ("mysql://u:very-secret@h/d", "must begin with postgresql://"),
        ("psql 'postgresql://u:very-secret@h/d'", "a command"),
        ("postgresql://u:[YOUR-PASSWORD]@h/d", "placeholder"),
        ("host=h password={your_password}", "placeholder"),
        ("postgresql://u:very-secret/x@h/d", "percent-encoded"),
        ("postgresql://u:very-secret@h:port/d", "percent-encoded"),
        ("postgresql://u:very-secret@h:99999/d", "port is no number from"),
        ("postgresql://h/d?password=a&very-secret", "%26"),
        ("host=h password=a very-secret", "single quotes"),
        ("host=h password='very-secret", "single quotes"),
        ("postgresql://u:very-secret@a,b:1,c:2,d/e?port=1,2", "port"),
        ("postgresql://u:very-secret@h/d?connect_timeout=soon", "connect_timeout"),
        ("postgresql://u:very-secret@h/d?gssencmode=require", "gssencmode"),
        ("postgresql://u:very-secret@h/d?sslmode=very-secret", "sslmode can only be"),
        ("postgresql://u:very-secret@h/d?sslmode=verify-full", "needs sslrootcert"),
        ("postgresql://h/d?sslrootcert=system&sslmode=require", "verify-full"),
    ],
)
def test_what_is_no_address_is_said_in_one_line_without_a_secret(
    text: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    with pytest.raises(Misconfigured, match=re.escape(says)) as caught:
        read(text)
    assert "very-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


PASSWORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def forms_with(password: str) -> list[str]:
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    return [
        f"postgresql://u:{quote(password, safe='')}@h/d",
        f"postgresql://h/d?user=u&password={quote(password, safe='')}",
        f"host=h user=u dbname=d password='{escaped}'",
    ]


@given(PASSWORDS)
def test_any_password_arrives_whole_in_both_forms_and_is_known_as_secret(password: str) -> None:
    for text in forms_with(password):
        _, parameters = as_asyncpg_reads(read(text))
        assert parameters.password == password  # type: ignore[attr-defined]
        assert password in set(secrets_in(text))
    # Behind a mark: a short one may be a part of any word, as `Fals` is.
    for text in forms_with(f"~~{password}"):
        assert "~~" not in repr(read(text))


@given(
    st.text(st.characters(codec="ascii", min_codepoint=32), min_size=12, max_size=30),
    st.sampled_from(
        [
            "postgresql://u:{}@h/d",
            "postgresql://u:{}@h:1/d?sslmode=off",
            "postgresql://{}",
            "host=h password={}",
            "host=h password='{}' gssencmode=require",
            "postgresql://h/d?password={}&replication=database",
            "postgresql://h/d?password={}",
        ]
    ),
)
def test_no_error_holds_what_was_given_as_password(password: str, form: str) -> None:
    address, error = tried(form.format(password))
    if address is None:
        assert password not in error
        assert len(error.splitlines()) == 1


def test_the_document_has_the_table_of_the_code() -> None:
    document = DOCUMENT.read_text("utf-8")
    for name, parameter in PARAMETERS.items():
        assert f"| `{name}` | {parameter.use.value} | {parameter.note} |" in document
