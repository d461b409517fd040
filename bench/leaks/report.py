"""The leak table, as Markdown and JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_TITLES = {
    "machine": "The machine's own",
    "people": "People's",
    "site": "The site's secrets: Calotype reports them and keeps them, unless asked",
}
_WORDS = """\
A used Debian server (cloud-init, waagent, OpenSSH, rsyslog, exim, nginx, cron, at), provisioned once for
*alice* and worked with, was shut down; each tool then got its own copy of its disk. A canary is a random
string planted in the running guest, or the very bytes of something that the guest made itself (host keys,
machine-id, seeds, hashes). It counts as left when the **raw disk** holds it anywhere: in a file, in a free
block, in an inode or a directory's slack, in the file system's journal, in swap; as it is, as UTF-16, or
inside base64 text. In brackets: how many of those still stand in a file, to be had without any search of
free blocks.
"""
_LIMITS = """\
- What the search cannot see: strings inside compressed data (journald compresses only fields of more than 512
  bytes; one rotated log is looked for by its compressed bytes), strings that lie across two blocks which do
  not follow each other, encrypted data.
- The root file system was mounted without `discard`, as where the hypervisor does not pass discards on; no
  `fstrim` ran in between.
- `/var/lib/waagent/ovf-env.xml` names alice, as on Azure: without it `waagent -deprovision+user` keeps the
  user and ends with status 0.
- The commands in the guest were run as root through the guest agent, then the guest was shut down: what it
  writes while it stops is part of what those tools leave. The other tools worked on the disk of the stopped
  machine.
"""


def count(canaries: Sequence[Mapping[str, Any]], left: Iterable[str]) -> dict[str, int]:
    """How many canaries of each kind are among ``left`` (names), kinds in order."""
    names = set(left)
    found: dict[str, int] = {}
    for canary in canaries:
        found[canary["kind"]] = found.get(canary["kind"], 0) + (canary["name"] in names)
    return found


def reported(canaries: Sequence[Mapping[str, Any]], paths: Iterable[str]) -> dict[str, int]:
    """How many canaries of each kind lie in files that a tool reported."""
    known = set(paths)
    return count(canaries, (canary["name"] for canary in canaries if canary["path"] in known))


def in_files(left: Mapping[str, Sequence[str]]) -> list[str]:
    """The canaries of which one place at least is a file that has a path."""
    return [name for name, places in left.items() if any(p.startswith("/") for p in places)]


def table(canaries: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The leak table: rows are kinds, columns are tools, cells what is left."""
    lines: list[str] = []
    for group, title in _TITLES.items():
        mine = [canary for canary in canaries if canary["group"] == group]
        planted = count(mine, (canary["name"] for canary in mine))
        columns = [
            (
                count(mine, tool["left"]),
                count(mine, in_files(tool["left"])),
                reported(mine, tool["reported"]),
            )
            for tool in tools
        ]
        lines += [f"### {title}", ""]
        lines += [f"| kind | planted | {' | '.join(tool['name'] for tool in tools)} |"]
        lines += ["|---" * (2 + len(tools)) + "|"]
        for kind in sorted(planted):
            cells = [_cell((found[kind] for found in column), group) for column in columns]
            lines.append(f"| {kind} | {planted[kind]} | {' | '.join(cells)} |")
        sums = [
            _cell((sum(found.values()) for found in column), group, bold=True) for column in columns
        ]
        lines += [f"| **all** | **{len(mine)}** | {' | '.join(sums)} |", ""]
    return lines


def _cell(counts: Iterable[int], group: str, *, bold: bool = False) -> str:
    left, files, said = counts
    text = f"**{left}**" if bold else str(left)
    if group == "site" and said and left:
        return f"{text} ({said} reported)"
    return f"{text} ({files})" if left else text


def tools_table(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the columns are."""
    lines = ["| column | what was done | version | its own time | what Calotype's proof says |"]
    lines += ["|---" * 5 + "|"]
    for tool in tools:
        notes = f" ({'; '.join(tool['notes'])})" if tool["notes"] else ""
        version = "; ".join(tool["version"].splitlines())
        judged = (
            f"{tool['verdict']}: {len(tool['findings'])} of {tool['checked']} checks find something"
        )
        lines.append(
            f"| {tool['name']} | `{tool['how']}` | {version} | {tool['seconds']:.0f} s{notes} | {judged} |"
        )
    return [*lines, "", "These times were taken once each; those to compare are under *Time*.", ""]


_MACHINE = ("cpu", "memory", "disk", "kernel", "python", "qemu-img")
_BOOT = {
    "came_up": "comes up",
    "provisioned": "the new user logs in",
    "host_name": "takes its new name",
    "machine_id": "new machine-id",
    "host_keys": "new host keys",
    "strangers": "people of before",
    "failed": "failed units",
}


def boots_table(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of each result at its first start as another machine."""
    rows = [tool for tool in tools if tool.get("boot")]
    if not rows:
        return []
    lines = ["## The first start as another machine", ""]
    lines += [
        "Each result was started once with a NoCloud seed that asks for the name `beta-db02` and the user",
        "*carol* with a key, on another network card.",
        "",
    ]
    lines += [f"| | {' | '.join(_BOOT.values())} |", "|---" * (1 + len(_BOOT)) + "|"]
    for tool in rows:
        cells = [_said(tool["boot"].get(key)) for key in _BOOT]
        lines.append(f"| {tool['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "?" if value is None else str(value)


def leftovers(tool: Mapping[str, Any], canaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a tool's leavings are, a line for each canary, the site's own left out."""
    group = {canary["name"]: canary["group"] for canary in canaries}
    lines = []
    for name, places in sorted(tool["left"].items()):
        if group.get(name) != "site":
            shown = ", ".join(f"`{place}`" for place in places[:4])
            lines.append(f"- {name}: {shown}{', …' if len(places) > 4 else ''}")
    return lines


def times_table(times: Mapping[str, Any]) -> list[str]:
    """Generalizing and proving against virt-sysprep."""
    rows = times["rows"]
    ours, theirs = rows[0]["median"], rows[1]["median"]
    lines = ["## Time", ""]
    lines += [
        f"The same disk, alternating, {len(rows[0]['all'])} runs each; load average before: "
        f"{times['load']:.1f}"
        + (
            " (quiet)."
            if times["quiet"]
            else ". **The machine was not quiet**: to be measured again by"
            " `.venv/bin/python -m bench.leaks --times`."
        ),
        "",
        "| | median, s | all, s |",
        "|---|---|---|",
    ]
    for row in rows:
        shown = ", ".join(f"{seconds:.1f}" for seconds in row["all"])
        lines.append(f"| {row['what']} | {row['median']:.1f} | {shown} |")
    holds = "holds" if theirs >= 5 * ours else "**missed**"
    lines += ["", f"virt-sysprep takes {theirs / ours:.1f} times as long (target: ≥ 5, {holds})."]
    return [*lines, "", *(f"- {note}" for note in times.get("notes", ())), ""]


def families_table(
    families: Sequence[Mapping[str, Any]], debian: Mapping[str, Any] | None
) -> list[str]:
    """Calotype on guests of several families; ``debian`` is the row of the leak table's own."""
    if not families:
        return []
    families = [debian, *families] if debian else families
    lines = ["## Families (Calotype)", ""]
    lines += ["| guest | sort | planted | left | site's secrets: left, reported | starts again |"]
    lines += ["|---" * 6 + "|"]
    for row in families:
        site = f"{row['site_left']} of {row['site']}, {row['reported']}"
        found = [row["planted"], row["left"], site] if row["planted"] else ["", "", ""]
        cells = " | ".join(map(str, [row["name"], row["sort"], *found, row["boot"]]))
        lines.append(f"| {cells} |")
    lines += [""]
    for row in families:
        lines += [f"- {row['name']}: {note}" for note in row.get("notes", ())]
    return [*lines, ""]


def _as_family(tool: Mapping[str, Any], canaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    site = {canary["name"] for canary in canaries if canary["group"] == "site"}
    boot = tool.get("boot")
    again = ("provisioned", "host_name", "machine_id", "host_keys")
    good = boot and all(boot.get(key) for key in again) and not boot["strangers"]
    return {
        "name": "Debian 12 (the table above)",
        "sort": "real guest",
        "planted": len(canaries) - len(site),
        "left": len(set(tool["left"]) - site),
        "site": len(site),
        "site_left": len(set(tool["left"]) & site),
        "reported": sum(reported(canaries, tool["reported"]).values()),
        "boot": "yes, as another machine" if good else "see above",
    }


def markdown(content: Mapping[str, Any]) -> str:
    """The whole report."""
    canaries, tools = content["canaries"], content["tools"]
    kinds = {canary["kind"] for canary in canaries}
    lines = ["# What is left in a generalized image", "", _WORDS]
    lines += [
        f"{len(canaries)} canaries of {len(kinds)} kinds. `make bench-leaks` repeats it all.",
        "",
        "![What each tool left](leaks.svg)",
        "",
        *table(canaries, tools),
        "## The columns",
        "",
        *tools_table(tools),
        *boots_table(tools),
    ]
    if content.get("times"):
        lines += times_table(content["times"])
    ours = next((tool for tool in tools if tool["name"] == "Calotype"), None)
    debian = _as_family(ours, canaries) if ours else None
    lines += families_table(content.get("families", ()), debian)
    for tool in tools:
        if tool["name"].startswith("Calotype") and (found := leftovers(tool, canaries)):
            lines += [f"## Left by {tool['name']}", "", *found, ""]
    lines += ["## How to read it", "", _LIMITS.rstrip()]
    if content["missing"]:
        lines += [
            "- Planted, but not found on the disk of the used machine either, so not counted: "
            + ", ".join(content["missing"])
            + "."
        ]
    about = {key: content["machine"].get(key) for key in _MACHINE}
    lines += [f"- Machine: {', '.join(f'{key} {said}' for key, said in about.items() if said)}."]
    return "\n".join([*lines, ""])


def write(content: Mapping[str, Any], report: Path) -> None:
    """``leaks.json`` and ``leaks.md``."""
    report.with_suffix(".json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    report.with_suffix(".md").write_text(markdown(content))
