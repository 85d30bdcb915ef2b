"""`run`: output, exit codes, and the flags that shape the process."""

import pytest

from harness.engine import Cli, Engine


def test_output_and_exit_code_come_through(cli: Cli) -> None:
    done = cli("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")


def test_standard_input_reaches_the_process_and_ends(cli: Cli) -> None:
    assert cli("run", "--rm", "-i", "busybox", "sort", input="b\na\n").out == "a\nb\n"


def test_without_i_the_process_has_an_empty_standard_input(cli: Cli) -> None:
    assert cli("run", "--rm", "busybox", "cat", input="never read").out == ""


def test_the_images_own_command_runs_when_none_is_given(cli: Cli) -> None:
    assert cli("run", "--rm", "configured").out == "entry default args\n"


def test_arguments_replace_cmd_and_keep_the_entrypoint(cli: Cli) -> None:
    assert cli("run", "--rm", "configured", "other").out == "entry other\n"


def test_entrypoint_replaces_both(cli: Cli) -> None:
    assert cli("run", "--rm", "--entrypoint", "pwd", "configured").out == "/work\n"


@pytest.mark.parametrize(
    ("code", "args"),
    [
        (125, ["--no-such-flag", "busybox"]),
        (125, ["--name", "!", "busybox"]),
        (126, ["busybox", "/etc/passwd"]),
        (126, ["busybox", "/etc"]),
        (127, ["busybox", "no-such-program"]),
        (127, ["busybox", "/no/such/program"]),
        (137, ["busybox", "sh", "-c", "kill -9 $$"]),
        (143, ["busybox", "sh", "-c", "kill -15 $$; sleep 9"]),
        (255, ["busybox", "sh", "-c", "exit 255"]),
    ],
)
def test_exit_codes_are_dockers(cli: Cli, code: int, args: list[str]) -> None:
    # The shell is not process 1 of its PID namespace's signals otherwise: the kernel ignores what has no handler.
    shell = ["--init"] if "sh" in args else []
    assert cli("run", "--rm", *shell, *args, check=False).code == code


def test_a_program_that_is_not_there_is_named(cli: Cli) -> None:
    done = cli("run", "--rm", "busybox", "no-such-program", check=False)
    assert 'exec: "no-such-program": executable file not found in $PATH' in done.err
    assert "Error response from daemon" in done.err


def test_a_failed_start_leaves_the_container_created(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "failed", "busybox", "no-such-program", check=False)
    state = engine.state("failed")
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", 127, False)
    assert "no-such-program" in state["Error"]


def test_rm_removes_the_container_and_frees_the_name_at_once(cli: Cli) -> None:
    for _ in range(3):
        cli("run", "--rm", "--name", "again", "busybox", "true")
    assert cli("ps", "-aq").text == ""


def test_rm_removes_the_container_of_a_failed_start(cli: Cli) -> None:
    assert cli("run", "--rm", "--name", "failed", "busybox", "no-such-program", check=False).code == 127
    assert cli("ps", "-aq").text == ""


def test_d_prints_the_id_and_returns(cli: Cli, engine: Engine) -> None:
    identifier = cli("run", "-d", "busybox", "sleep", "600").text
    assert len(identifier) == 64
    assert engine.state(identifier)["Running"]


def test_environment_comes_from_image_flags_and_file(cli: Cli, tmp_path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nFROM_FILE=1\nFROM_CLIENT\n")
    flags = ["-e", "COLOUR=red", "-e", "EQUALS=a=b", "-e", "UNSET_HERE", "--env-file", str(file)]
    shown = cli("run", "--rm", *flags, "--entrypoint", "env", "configured", env={"FROM_CLIENT": "yes"}).lines
    assert {"COLOUR=red", "EMPTY=", "EQUALS=a=b", "FROM_FILE=1", "FROM_CLIENT=yes"} <= set(shown)
    assert not [line for line in shown if line.startswith("UNSET_HERE")]
    names = [line.partition("=")[0] for line in shown]
    assert sorted(names) == sorted(set(names)), "a variable is given twice"
    assert {"PATH", "HOSTNAME", "HOME"} <= set(names)


def test_home_is_the_users(cli: Cli) -> None:
    assert cli("run", "--rm", "-u", "alice", "busybox", "sh", "-c", "echo $HOME").text == "/home/alice"


def test_workdir_is_used_and_made(cli: Cli) -> None:
    assert cli("run", "--rm", "-w", "/not/there/yet", "busybox", "pwd").text == "/not/there/yet"


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("alice", "1000 1000 1000 50"),
        ("1000", "1000 1000 1000 50"),
        ("alice:disk", "1000 6 6"),
        ("4242", "4242 0 0"),
        ("4242:4343", "4242 4343 4343"),
        (":staff", "0 50 50"),
    ],
)
def test_user_is_resolved_in_the_image(cli: Cli, user: str, shown: str) -> None:
    script = "echo $(id -u) $(id -g) $(id -G)"
    assert cli("run", "--rm", "-u", user, "busybox", "sh", "-c", script).text == shown


def test_an_unknown_user_is_named(cli: Cli) -> None:
    done = cli("run", "--rm", "-u", "nobody-knows", "busybox", "true", check=False)
    assert done.code in (125, 126)
    assert "unable to find user nobody-knows: no matching entries in passwd file" in done.err


def test_group_add_gives_more_groups(cli: Cli) -> None:
    flags = ["--group-add", "disk", "--group-add", "777"]
    groups = cli("run", "--rm", "-u", "alice", *flags, "busybox", "id", "-G").text.split()
    assert {"6", "777"} <= set(groups)


def test_hostname_is_set_and_resolves_to_the_container(cli: Cli) -> None:
    script = "hostname; cat /etc/hostname; grep box1 /etc/hosts"
    lines = cli("run", "--rm", "--hostname", "box1", "busybox", "sh", "-c", script).lines
    assert lines[:2] == ["box1", "box1"]
    assert lines[2].startswith("172.31.0.")


def test_the_default_hostname_is_the_short_id(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "named", "busybox", "true")
    found = engine.inspect("named")
    assert found["Config"]["Hostname"] == found["Id"][:12]


def test_add_host_and_dns_are_written(cli: Cli) -> None:
    flags = ["--add-host", "db:10.1.2.3", "--dns", "10.9.8.7", "--dns-search", "corp.test", "--dns-option", "ndots:3"]
    shown = cli("run", "--rm", *flags, "busybox", "cat", "/etc/hosts", "/etc/resolv.conf").out
    assert "10.1.2.3\tdb" in shown
    assert "nameserver 10.9.8.7" in shown
    assert "search corp.test" in shown
    assert "ndots:3" in shown


def test_init_is_process_one_and_reaps(cli: Cli, require) -> None:
    require("tini")
    shown = cli("run", "--rm", "--init", "busybox", "sh", "-c", "cat /proc/1/comm; echo $$").lines
    assert "init" in shown[0]
    assert shown[1] != "1"


def test_read_only_refuses_writes_but_not_to_mounts(cli: Cli) -> None:
    script = "touch /x 2>/dev/null && echo written; touch /tmp/x && echo tmpfs"
    done = cli("run", "--rm", "--read-only", "--tmpfs", "/tmp", "busybox", "sh", "-c", script)
    assert done.out == "tmpfs\n"


def test_tmpfs_options_are_used(cli: Cli) -> None:
    script = "grep ' /scratch ' /proc/mounts; stat -c %a /scratch"
    lines = cli("run", "--rm", "--tmpfs", "/scratch:size=64k,mode=700,noexec", "busybox", "sh", "-c", script).lines
    assert lines[0].split()[2] == "tmpfs"
    assert {"size=64k", "noexec", "nosuid", "nodev"} <= set(lines[0].split()[3].split(","))
    assert lines[1] == "700"


def test_shm_size_ulimit_and_sysctl_are_set(cli: Cli) -> None:
    flags = ["--shm-size", "8m", "--ulimit", "nofile=123:456", "--sysctl", "net.ipv4.ip_default_ttl=77"]
    script = "df -k /dev/shm | tail -1; ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_default_ttl"
    lines = cli("run", "--rm", *flags, "busybox", "sh", "-c", script).lines
    assert lines[0].split()[1] == "8192"
    assert lines[1:] == ["123", "456", "77"]


def test_cidfile_is_written_and_never_overwritten(cli: Cli, tmp_path) -> None:
    file = tmp_path / "cid"
    cli("run", "--rm", "--cidfile", str(file), "busybox", "true")
    assert len(file.read_text()) == 64
    done = cli("run", "--rm", "--cidfile", str(file), "busybox", "true", check=False)
    assert done.code == 125
    assert "ontainer ID file found" in done.err


def test_labels_are_kept(cli: Cli, engine: Engine) -> None:
    cli("run", "--name", "labelled", "-l", "a=1", "--label", "b", "configured")
    labels = engine.inspect("labelled")["Config"]["Labels"]
    assert labels == {"a": "1", "b": "", "org.example.kind": "test", "empty": ""}


def test_a_large_output_comes_through_whole(cli: Cli) -> None:
    done = cli("run", "--rm", "busybox", "sh", "-c", "yes 0123456789abcde | head -n 200000", timeout=120)
    assert done.out == "0123456789abcde\n" * 200000


def test_output_that_is_not_text_comes_through_unchanged(docker: Cli, engine: Engine) -> None:
    import hashlib
    import subprocess

    done = docker.start("run", "--rm", "busybox", "sh", "-c", "head -c 300000 /bin/busybox", stderr=subprocess.DEVNULL)
    out, _ = done.communicate(timeout=60)
    expected = docker("run", "--rm", "busybox", "sh", "-c", "head -c 300000 /bin/busybox | sha256sum").text.split()[0]
    assert hashlib.sha256(out).hexdigest() == expected


def test_a_name_in_use_is_a_conflict_that_names_the_owner(cli: Cli, engine: Engine) -> None:
    owner = cli("create", "--name", "taken", "busybox").text
    done = cli("run", "--name", "taken", "busybox", "true", check=False)
    assert done.code == 125
    assert f'The container name "/taken" is already in use by container "{owner}"' in done.err


def test_several_containers_of_one_image_do_not_see_each_others_files(cli: Cli) -> None:
    cli("run", "--name", "one", "busybox", "sh", "-c", "echo changed > /etc/passwd; rm /etc/group")
    assert cli("run", "--rm", "busybox", "cat", "/etc/group").out.startswith("root:x:0:")
    cli("start", "one")
