"""The machine's name under other domains."""

from calotype.guest.steps import hostname


def test_the_machine_is_forgotten_in_every_domain_and_others_stay():
    old, ours = {"web01", "web01.example"}, {"localhost"}
    line = "10.0.2.15 web01.vnet.internal files web01"
    assert hostname._hosts_line(line, old, ours) == "10.0.2.15 files"
    assert hostname._hosts_line("10.0.2.15 web01.vnet.internal # us", old, ours) is None
    kept = "10.0.2.16 web012.vnet.internal my.web01.example"
    assert hostname._hosts_line(kept, old, ours) == kept
