"""Other people's FORWARD chains: where they drop what nobody claimed, our bridges are claimed.

A drop in any table is final, and dockerd and ufw let iptables' FORWARD chain drop by policy. Two rules for each bridge
at the end of that chain accept what concerns it; our own table then decides. What somebody refuses before keeps being
refused. iptables-nft's chains are changed as nftables; those of the older kernel interface (iptables-legacy) through
the program, when they are in use at all.
"""

import logging
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from wherry.kernel import nftables
from wherry.kernel.nftables import Family, Nftables

log = logging.getLogger(__name__)

TABLE, CHAIN = "filter", "FORWARD"
FAMILIES = (Family.IP, Family.IP6)
WORDS = {Family.IP: "ip", Family.IP6: "ip6"}
PATIENCE = 20  # s for iptables-legacy


class Neighbours:
    """Blocking; for one thread at a time. `owner` marks our rules: name of our table."""

    def __init__(self, owner: str, proc: Path = Path("/proc/thread-self/net")) -> None:
        self._owner = owner
        self._legacy = [
            _Legacy(owner, program, proc / names)
            for program, names in (
                ("iptables-legacy", "ip_tables_names"),
                ("ip6tables-legacy", "ip6_tables_names"),
            )
        ]

    def claim(self, nft: Nftables, bridges: Sequence[str]) -> int:
        """Have each of `bridges` accepted where the policy is to drop; no other. Idempotent. Raises OSError, Failed.

        How many nftables transactions it took.
        """
        commands = []
        for family in FAMILIES:
            wanted = set(bridges) if nft.drops(family, TABLE, CHAIN) else set()
            present = self._claims(nft, family)
            commands += [_delete(family, handle) for bridge, handle in present if bridge not in wanted]
            commands += _adds(family, self._owner, sorted(wanted - {bridge for bridge, _ in present}))
        if commands:
            nftables.run("\n".join(commands))
        for legacy in self._legacy:
            legacy.claim(bridges)
        return 1 if commands else 0

    def _claims(self, nft: Nftables, family: Family) -> list[tuple[str, int]]:
        """Bridge and handle of our rules; "" for those of an older version."""
        found = []
        for rule in nft.rules(family, TABLE, CHAIN):
            owner, _, bridge = rule.comment[2:].rstrip(b"\0").decode(errors="replace").partition(" ")
            if owner == self._owner:
                found.append((bridge, rule.handle))
        return found

    def leave(self, nft: Nftables) -> None:
        """Take all our rules away. Idempotent."""
        commands = [_delete(family, handle) for family in FAMILIES for _, handle in self._claims(nft, family)]
        if commands:
            nftables.run("\n".join(commands))
        for legacy in self._legacy:
            legacy.claim(())


def _adds(family: Family, owner: str, bridges: Iterable[str]) -> list[str]:
    return [
        f'add rule {WORDS[family]} {TABLE} {CHAIN} {way} "{bridge}" counter accept comment "{owner} {bridge}"'
        for bridge in bridges
        for way in ("iifname", "oifname")
    ]


def _delete(family: Family, handle: int) -> str:
    return f"delete rule {WORDS[family]} {TABLE} {CHAIN} handle {handle}"


class _Legacy:
    """One of iptables-legacy and ip6tables-legacy. The kernel tells nobody that these rules changed: they are looked at
    when our networks change and when the daemon starts."""

    def __init__(self, owner: str, program: str, names: Path) -> None:
        self._owner = owner
        self._program = program
        self._names = names
        self._warned = False
        self._claimed: set[str] = set()

    def claim(self, bridges: Sequence[str]) -> None:
        try:
            in_use = TABLE in self._names.read_text().split()
        except OSError:
            in_use = False  # the kernel has no such interface
        if not in_use:
            return
        program = shutil.which(self._program)
        if program is None:
            if not self._warned:
                log.warning(
                    "the kernel has rules of %s, but there is no such program: should they drop what is forwarded, "
                    "containers are cut off",
                    self._program,
                )
                self._warned = True
            return
        rules = self._run(program, "-S", CHAIN).splitlines()
        present = {line.split()[line.split().index("-i") + 1] for line in rules if self._is_ours(line, "-i")}
        wanted = set(bridges) if f"-P {CHAIN} DROP" in rules else set()
        for action, names in (("-D", present - wanted), ("-A", wanted - present)):
            for bridge in sorted(names):
                for way in ("-i", "-o"):
                    comment = ("-m", "comment", "--comment", f"{self._owner} {bridge}")
                    self._run(program, action, CHAIN, way, bridge, *comment, "-j", "ACCEPT")

    def _is_ours(self, line: str, way: str) -> bool:
        return f" {way} " in line and f'--comment "{self._owner} ' in line

    def _run(self, program: str, *arguments: str) -> str:
        """What it prints; a failure is told in the log."""
        try:
            done = subprocess.run(
                [program, "-w", "5", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            log.warning("%s %s: %s", self._program, " ".join(arguments), exc)
            return ""
        if done.returncode:
            log.warning("%s %s: %s", self._program, " ".join(arguments), done.stderr.strip())
        return done.stdout
