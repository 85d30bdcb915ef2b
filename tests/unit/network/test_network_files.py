from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.network import files
from wherry.network.endpoint import NameServers

HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def test_hosts_has_the_defaults_then_extra_hosts_then_the_container() -> None:
    text = files.hosts(
        hostname="web",
        addresses=["172.17.0.2", ""],
        extra_hosts=["db:10.0.0.5", "host.docker.internal:host-gateway", "six:[fd00::1]", "bare:fd00::2"],
        gateways=["172.17.0.1"],
    )
    assert text == HOSTS + (
        "10.0.0.5\tdb\n172.17.0.1\thost.docker.internal\nfd00::1\tsix\nfd00::2\tbare\n172.17.0.2\tweb\n"
    )


def test_a_domain_comes_before_the_short_name() -> None:
    text = files.hosts(hostname="web", domainname="example.org", addresses=["172.17.0.2"])
    assert text == HOSTS + "172.17.0.2\tweb.example.org web\n"


def test_on_the_hosts_network_its_own_hosts_are_kept() -> None:
    assert files.hosts_on_host_network("127.0.0.1 localhost", extra_hosts=["db:10.0.0.5"]) == (
        "127.0.0.1 localhost\n10.0.0.5\tdb\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("db", 'bad format for add-host: "db"'),
        (":10.0.0.1", 'bad format for add-host: ":10.0.0.1"'),
        ("db evil:10.0.0.1", 'bad format for add-host: "db evil:10.0.0.1"'),
        ("db\n1.2.3.4 evil:10.0.0.1", 'bad format for add-host: "db\n1.2.3.4 evil:10.0.0.1"'),
        ("db:", 'invalid IP address in add-host: ""'),
        ("db:10.0.0", 'invalid IP address in add-host: "10.0.0"'),
        ("db:10.0.0.1\n1.2.3.4 evil", 'invalid IP address in add-host: "10.0.0.1\n1.2.3.4 evil"'),
    ],
)
def test_wrong_extra_hosts_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        files.parse_extra_host(text)
    assert refused.value.message == message


def test_without_a_bridge_there_is_no_host_gateway() -> None:
    with pytest.raises(InvalidParameter, match="host-gateway"):
        files.hosts(hostname="web", extra_hosts=["x:host-gateway"])


HOST_RESOLV = """\
# by hand
nameserver 127.0.0.53 ; stub
nameserver 192.0.2.53
nameserver fd00::53
domain ignored.example
search a.example b.example
options edns0 ndots:2
options trust-ad
"""


def test_name_servers_a_container_cannot_reach_are_left_out() -> None:
    assert files.resolv_conf(HOST_RESOLV) == (
        "nameserver 192.0.2.53\nsearch a.example b.example\noptions edns0 ndots:2 trust-ad\n"
    )


@pytest.mark.parametrize(
    "host", ["", "nameserver 127.0.0.1\nnameserver ::1\n", "nameserver nonsense\n", "nameserver\n"]
)
def test_dockers_fallback_serves_where_no_name_server_is_left(host: str) -> None:
    assert files.resolv_conf(host) == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_what_is_given_replaces_that_part() -> None:
    text = files.resolv_conf(HOST_RESOLV, dns=["127.0.0.1", "1.1.1.1"], search=["x.example"], options=["ndots:1"])
    assert text == "nameserver 127.0.0.1\nnameserver 1.1.1.1\nsearch x.example\noptions ndots:1\n"
    assert "search" not in files.resolv_conf(HOST_RESOLV, search=["."])


def test_on_the_hosts_network_its_own_resolv_conf_is_kept() -> None:
    assert files.resolv_conf(HOST_RESOLV, own_network=False) == HOST_RESOLV
    assert files.resolv_conf(HOST_RESOLV, own_network=False, options=["ndots:1"]) == (
        "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fd00::53\n"
        "search a.example b.example\noptions ndots:1\n"
    )


def test_behind_systemd_resolved_the_real_servers_are_read(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    assert files.host_resolv_conf(stub, real) == "nameserver 127.0.0.53\n"
    real.write_text("nameserver 192.0.2.53\n")
    assert files.host_resolv_conf(stub, real) == "nameserver 192.0.2.53\n"
    stub.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")
    assert files.host_resolv_conf(stub, real) == stub.read_text()
    assert files.host_resolv_conf(tmp_path / "missing", real) == ""


@given(st.text())
def test_no_host_file_breaks_the_rendering(host: str) -> None:
    text = files.resolv_conf(host)
    assert files.name_servers(text)
    assert all(line.split()[0] in ("nameserver", "search", "options") for line in text.splitlines())


def test_name_servers_must_be_addresses() -> None:
    files.check_dns(["1.1.1.1", "fd00::1"])
    with pytest.raises(InvalidParameter, match="bad nameserver address: dns"):
        files.check_dns(["dns"])
    assert files.hostname_file("web") == "web\n"


def test_the_hosts_addresses_of_both_families_are_host_gateway() -> None:
    assert files.extra_host_lines(["up:host-gateway"], ["172.17.0.1", "fd00::1"]) == [
        "172.17.0.1\tup\n",
        "fd00::1\tup\n",
    ]


def test_linked_containers_come_before_the_containers_own_addresses() -> None:
    text = files.hosts(hostname="web", addresses=["172.17.0.3", "fd00::3"], links=[("172.17.0.2", "db 1f2e data")])
    assert text == HOSTS + "172.17.0.2\tdb 1f2e data\n172.17.0.3\tweb\nfd00::3\tweb\n"


def test_lines_of_hosts_come_and_go_and_what_the_container_wrote_stays() -> None:
    text = "127.0.0.1\tlocalhost\n172.18.0.2\tweb  \n# mine\n10.0.0.1 own"
    changed = files.change_hosts(text, add=["10.1.0.2\tweb\n"], remove=["172.18.0.2\tweb\n", "10.9.9.9\tweb\n"])
    assert changed == "127.0.0.1\tlocalhost\n# mine\n10.0.0.1 own\n10.1.0.2\tweb\n"
    assert files.change_hosts(changed, add=["10.1.0.2\tweb\n"]) == changed


def test_the_resolver_asks_what_was_given_from_the_containers_network() -> None:
    host = "nameserver 127.0.0.53\nnameserver 10.0.0.53\nnameserver fd00::53\nsearch example.org\noptions timeout:1\n"
    assert files.upstream(host) == NameServers(
        servers=("10.0.0.53",),
        from_host=("127.0.0.53", "fd00::53"),
        search=("example.org",),
        options=("timeout:1",),
    )
    assert files.upstream(host, dns=["127.0.0.1"], search=["."], options=["ndots:2"]) == NameServers(
        servers=("127.0.0.1",), options=("ndots:2",)
    )


def test_a_host_that_moves_keeps_its_names() -> None:
    text = "127.0.0.1\tlocalhost\n172.17.0.2\tdb 1f2e data\n# db\n172.17.0.9\tweb db\n\nodd"
    assert files.move_host(text, "db", "172.17.0.5") == text.replace("172.17.0.2", "172.17.0.5")
