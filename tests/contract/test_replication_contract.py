"""A version in three regions: on a real server, in a directory, and on a server that is down."""

import os
from contextlib import closing

from tests.published import a_definition, a_version
from tests.servers.run import fresh

from calotype import wire
from calotype.config import SETTINGS, Home
from calotype.disk.base import read
from calotype.engine import storage
from calotype.engine.gallery import replication
from calotype.model import MIB


def test_each_region_fares_for_itself_and_a_server_gives_back_what_is_damaged_here(
    s3_server, tmp_path, monkeypatch
):
    for setting in SETTINGS:
        monkeypatch.delenv(setting.environment, raising=False)
    home = Home(tmp_path / "home").prepare()
    dead = "s3://images/x?endpoint=http://127.0.0.1:1"
    stores = {"far": s3_server.url(fresh()), "near": tmp_path / "near", "dead": dead}
    lines = [f'{name} = "{url}"' for name, url in stores.items()]
    home.config.write_text("\n".join(["[stores]", *lines]))
    with closing(wire.build(home=home)) as context:
        a_definition(context)
        content = os.urandom(3 * MIB)
        version = a_version(context, content=content)
        done = replication.replicate(context, version, ["dead", "far", "near"])
    assert {r.region: r.state.value for r in done.summary} == {
        "dead": "Failed",
        "far": "Completed",
        "near": "Completed",
    }
    for pack in (home.store / "packs").iterdir():
        raw = bytearray(pack.read_bytes())
        raw[len(raw) // 3] ^= 1
        pack.write_bytes(raw)
    with closing(wire.build(home=home)) as context:
        assert storage.repair(context, "far").ok
        with closing(context.repository.open(version.image.os_disk.index)) as disk:
            assert read(disk, 0, disk.size) == content
        assert replication.withdraw(context, version, ["far"]).removed == 1
        with storage.other_store(context, "far") as other:
            assert other.indexes() == []
