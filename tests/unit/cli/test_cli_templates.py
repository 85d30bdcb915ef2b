"""Go templates: what docker's own engine printed for the same template over the same document."""

import pytest

from wherry.cli.listing import HEADER_FUNCTIONS, HeaderRow, Row, format_rows
from wherry.cli.template import TemplateError, parse

DOCUMENT = {
    "Id": "d2142dad47a6f75f3f7dc6488a8304d5",
    "Created": "2026-11-24T05:13:10.025688878Z",
    "Path": "sleep",
    "Args": ["100000"],
    "Name": "/tt",
    "State": {"Status": "running", "Running": True, "Pid": 29231, "ExitCode": 0},
    "Mounts": [],
    "Config": {"Env": ["PATH=/bin"], "Cmd": ["sleep"], "Labels": {}, "Volumes": None, "Entrypoint": None},
    "HostConfig": {
        "NanoCpus": 0,
        "Binds": None,
        "PortBindings": {},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "json-file", "Config": {}},
    },
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": None},
        "Networks": {"bridge": {"IPAddress": "172.31.0.2"}},
    },
}

PRINTED = [
    ("plain", "plain"),
    ("{{.Name}} {{.State.Status}}", "/tt running"),
    ("{{.Id}}", DOCUMENT["Id"]),
    ("{{.ID}}", DOCUMENT["Id"]),
    ("{{.ID}} {{.HostConfig.NanoCPUs}}", DOCUMENT["Id"] + " 0"),
    ("{{.State.Health}}", "<nil>"),
    ("{{if .State.Health}}y{{else}}n{{end}}", "n"),
    ('{{index .Config.Labels "foo"}}|', "|"),
    ('{{index .NetworkSettings.Ports "81/tcp"}}|', "<no value>|"),
    ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
    ('{{join .Config.Env ","}}', "PATH=/bin"),
    ("{{len .Name}} {{.HostConfig.NanoCpus}}", "3 0"),
    ("{{range .Config.Env}}{{println .}}{{end}}", "PATH=/bin\n"),
    ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}}{{end}}", "0=PATH=/bin"),
    ("{{range $p, $b := .NetworkSettings.Ports}}{{$p}}={{$b}};{{end}}", "53/udp=[];80/tcp=[{0.0.0.0 8080}];"),
    ("{{range .Mounts}}x{{else}}none{{end}}", "none"),
    ("{{range $v := .Args}}{{$v}}{{end}}", "100000"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{range .Args}}{{break}}x{{end}}{{range .Args}}{{continue}}x{{end}}", ""),
    ('{{.Name | printf "%s-%5d|" }}', "/tt-%!d(MISSING)|"),
    ('{{printf "%s %d %v %q %5.2f" .Name .State.Pid .State.Running .Name 3.14159}}', '/tt 29231 true "/tt"  3.14'),
    ('{{printf "%-5s|%5s|%05d|%x|%t|%%" "ab" "cd" 42 255 true}}', "ab   |   cd|00042|ff|true|%"),
    ('{{printf "%d" "x"}}', "%!d(string=x)"),
    ("{{1000000.0}} {{1e6}} {{1e21}} {{12345678.5}} {{0.00001}} {{1.5}}",
     "1e+06 1e+06 1e+21 1.23456785e+07 1e-05 1.5"),
    ("{{0x10}} {{'a'}} {{true}}", "16 97 true"),
    ('{{"a" | upper | printf "%s"}}', "A"),
    ("{{$x := .Name}}{{$x}}{{$x = .Path}}{{$x}}", "/ttsleep"),
    ("{{with .State}}{{.Pid}}{{$.Name}}{{end}}{{with .Mounts}}x{{else}}y{{end}}", "29231/tty"),
    ("{{with $x := .Name}}{{$x}}{{.}}{{end}}", "/tt/tt"),
    ("{{ .Name -}}  x {{- 1 }}", "/ttx1"),
    ("a{{/* note */}}b{{- /* note */ -}} c", "abc"),
    ("{{.Config.Labels}} {{.Config.Volumes}} {{.Config.Entrypoint}} {{.HostConfig.PortBindings}} {{.HostConfig.Binds}}",
     "map[] map[] [] map[] []"),
    ("{{.HostConfig.RestartPolicy}} {{.HostConfig.LogConfig}}", "{no 0} {json-file map[]}"),
    ("{{.State}}", "{running true 29231 0}"),
    ("{{.NetworkSettings.Networks.bridge.IPAddress}}", "172.31.0.2"),
    ("{{json .State}} {{json .Config.Entrypoint}} {{json .Args}}",
     '{"Status":"running","Running":true,"Pid":29231,"ExitCode":0} null ["100000"]'),
    ("{{.Name | }}", "/tt"),
    ('{{lt 1 2}} {{and 1 0}} {{or "" "x"}} {{not true}} {{eq 1 2 1}} {{ne 1 2}} {{ge 2 2}} {{gt 1 2}} {{le 1 1}}',
     "true 0 x false true true true false true"),
    ("{{truncate .Id 5}} {{pad .Name 1 2}}|{{lower \"A\"}}{{title \"ab cd\"}}", "d2142  /tt  |aAb Cd"),
    ('{{range split "a,b" ","}}<{{.}}>{{end}}', "<a><b>"),
    ("{{slice .Id 0 5}}{{slice .Id 30}}", "d2142d5"),
    ('{{print 1 2 "a" "b" 3}} {{println "x" 1}}', "1 2ab3 x 1\n"),
    ('{{index .Config "Env"}}', "[PATH=/bin]"),
    ("{{if and (eq .Name \"/tt\") .State.Running}}a{{else if .Mounts}}b{{else}}c{{end}}", "a"),
    ("{{if .Mounts}}a{{else if .Name}}b{{else}}c{{end}}", "b"),
    ('{{html "<a>"}} {{urlquery "a b&c"}}', "&lt;a&gt; a+b%26c"),
    ('{{"}}"}}{{`raw`}}{{"\\t\\u00e9"}}', "}}raw\té"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), PRINTED)
def test_a_template_prints_what_docker_prints(template: str, expected: str) -> None:
    assert parse(template).render(DOCUMENT) == expected


REFUSED = [
    ("{{", "template: :1: unclosed action"),
    ("{{.Foo", "template: :1: unclosed action"),
    ("a\n{{foo}}", 'template: :2: function "foo" not defined'),
    ("{{end}}", "template: :1: unexpected {{end}}"),
    ("{{if}}", "template: :1: missing value for if"),
    ("{{if .Name}}", "template: :1: unexpected EOF"),
    ("{{$y}}", 'template: :1: undefined variable "$y"'),
    ("{{with $x := 1}}{{end}}{{$x}}", 'template: :1: undefined variable "$x"'),
    ('{{"unclosed}}', "template: :1: unterminated quoted string"),
    ("{{) }}", "template: :1: unexpected right paren"),
    ("{{(1}}", "template: :1: unclosed left paren"),
    ("{{/* x }}", "template: :1: unclosed comment"),
    ("{{break}}", "template: :1: {{break}} outside {{range}}"),
    ("{{.Foo}}", 'template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"'),
    ("{{.name}}", 'template: :1:2: executing "" at <.name>: map has no entry for key "name"'),
    ("{{.State.Foo}}", 'template: :1:8: executing "" at <.State.Foo>: map has no entry for key "Foo"'),
    ("{{.State.Health.Status}}",
     'template: :1:8: executing "" at <.State.Health.Status>: map has no entry for key "Health"'),
    ("{{.Name.Foo}}", "template: :1:7: executing \"\" at <.Name.Foo>: can't evaluate field Foo in type interface {}"),
    ("{{index .Config.Env 5}}",
     'template: :1:2: executing "" at <index .Config.Env 5>: error calling index: index out of range: 5'),
    ('{{(index (index .NetworkSettings.Ports "81/tcp") 0).HostPort}}',
     'template: :1:3: executing "" at <index (index .NetworkSettings.Ports "81/tcp") 0>:'
     " error calling index: index of untyped nil"),
    ("{{eq .Name 1}}",
     'template: :1:2: executing "" at <eq .Name 1>: error calling eq: incompatible types for comparison'),
    ("{{nil}}", 'template: :1:2: executing "" at <nil>: nil is not a command'),
]  # fmt: skip


@pytest.mark.parametrize(("template", "message"), REFUSED)
def test_a_wrong_template_is_refused_in_docker_s_words(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as failure:
        parse(template).render(DOCUMENT)
    assert str(failure.value) == message


class Pet(Row):
    type_name = "*formatter.PetContext"

    def __init__(self, name: str) -> None:
        self.name = name

    FIELDS = {"Name": lambda self: self.name, "Tag": lambda self: "<t>"}  # noqa: RUF012
    ARGUMENTS = {"Label": lambda self, key: f"{self.name}.{key}"}  # noqa: RUF012


HEADERS = {"Name": "NAME", "Tag": "TAG"}
PETS = [Pet("rex"), Pet("a-very-long-name")]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("", "NAME               TAG\nrex                <t>\na-very-long-name   <t>\n"),
        ("table", "NAME               TAG\nrex                <t>\na-very-long-name   <t>\n"),
        ("table {{.Tag}}\\t{{upper .Name}}", "TAG       NAME\n<t>       REX\n<t>       A-VERY-LONG-NAME\n"),
        ('table {{.Label "com.x_y"}}\t{{json .Tag}}', 'x y                        TAG\n'
         'rex.com.x_y                "<t>"\na-very-long-name.com.x_y   "<t>"\n'),
        ("{{.Name}}\\n-", "rex\n-\na-very-long-name\n-\n"),
        ("json", '{"Name":"rex","Tag":"\\u003ct\\u003e"}\n{"Name":"a-very-long-name","Tag":"\\u003ct\\u003e"}\n'),
        ("{{json .}}", '{"Name":"rex","Tag":"\\u003ct\\u003e"}\n'
         '{"Name":"a-very-long-name","Tag":"\\u003ct\\u003e"}\n'),
    ],
)  # fmt: skip
def test_listings_by_format(form: str, expected: str) -> None:
    assert format_rows(form, PETS, ("Name", "Tag"), HEADERS) == expected


def test_a_field_no_row_has_is_named_with_the_row_s_type() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Foo in type \*formatter\.PetContext"):
        parse("{{.Foo}}").render(PETS[0])


def test_a_heading_without_a_word_has_no_value() -> None:
    assert parse("{{.Foo}}").render(HeaderRow(HEADERS), HEADER_FUNCTIONS) == "<no value>"
