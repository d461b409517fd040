"""The machine's own archives, in both of APT's formats."""

import pytest

from calotype.recipe import apt

DEB822 = """\
# a comment
Types: deb
URIs: https://mirror.example/debian/
# another
Suites: trixie trixie-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: trixie-security
Components: main

Enabled: no
Types: deb
URIs: https://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: https://src.example/debian
Suites: trixie
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/x.gpg] https://download.docker.com/linux/debian bookworm stable
deb cdrom:[Debian]/ bookworm main
# deb http://old.example/debian bookworm main
deb http://ftp.example/debian bookworm main contrib # trailing
"""


@pytest.fixture
def etc(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def lines(etc, suite="bookworm"):
    return [line.split("] ")[1] for line in apt.mirror_lines(suite, apt.host_sources(etc))]


def test_nothing_configured(etc):
    assert lines(etc) == [
        "http://deb.debian.org/debian bookworm main",
        "http://deb.debian.org/debian bookworm-updates main",
        "http://deb.debian.org/debian-security bookworm-security main",
    ]


def test_the_machines_mirror_serves_another_suite(etc):
    (etc / "sources.list.d/debian.sources").write_text(DEB822)
    assert lines(etc) == [
        "https://mirror.example/debian/ bookworm main",
        "https://mirror.example/debian/ bookworm-updates main",
        "https://mirror.example/debian-security bookworm-security main",
    ]


def test_other_peoples_archives_are_left_alone(etc):
    (etc / "sources.list").write_text(ONE_LINE)
    assert lines(etc) == ["http://ftp.example/debian bookworm main"]


def test_every_archive_is_verified():
    for line in apt.mirror_lines("bookworm", []):
        assert line.startswith("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ")


def test_how_the_host_fetches(monkeypatch):
    dump = (
        b'Acquire "";\nAcquire::http::Proxy "http://proxy:3142";\nAcquire::https::CAInfo "/ca.pem";\n'
        b'Acquire::Check-Valid-Until "false";\nAcquire::AllowInsecureRepositories "1";\n'
        b'Acquire::Languages:: "de";\nAcquire::http "";\n'
    )

    def run(argv, **options):
        assert argv[0] == "apt-config"
        return type("Done", (), {"stdout": dump})

    monkeypatch.setattr(apt, "run", run)
    assert apt.fetch_options() == [
        'Acquire::http::Proxy "http://proxy:3142";',
        'Acquire::https::CAInfo "/ca.pem";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::Languages "none";',
    ]
