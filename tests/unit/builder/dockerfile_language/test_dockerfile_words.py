"""Quotes, escapes and variables as docker reads them."""

import pytest

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.words import MAX_EXPANDED, expand, json_words, split_quoted

ENV = {
    "x": "foobarfoo",
    "empty": "",
    "path": "/a/b.tar.gz",
    "two": "a  b",
    "n": "l1\nl2.x",
    "stars": "a***yy*",
    "y": "fo",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$x", "foobarfoo"),
        ("${x}s", "foobarfoos"),
        ("$x.$empty.$unset.", "foobarfoo..."),
        ("$xy", ""),
        ("$1x", "x"),
        ("a$", "a$"),
        ("$ a", "$ a"),
        ("$/", "$/"),
        ("$$x", "x"),
        (r"\$x", "$x"),
        (r"\${x}", "${x}"),
        (r"\\$x", r"\foobarfoo"),
        (r"a\b", "ab"),
        ("a\\", "a"),
        ("'$x'", "$x"),
        (r"'\'", "\\"),
        ('"$x"', "foobarfoo"),
        (r'"\$x \" \\ \a"', r'$x " \ \a'),
        ("'it''s' \"a\"'b'", "its ab"),
        ("\"'$x'\"", "'foobarfoo'"),
        # unset and empty
        ("${unset:-d} ${empty:-d} ${x:-d}", "d d foobarfoo"),
        ("${unset-d} ${empty-d} ${x-d}", "d  foobarfoo"),
        ("${unset:+d} ${empty:+d} ${x:+d}", "  d"),
        ("${unset+d} ${empty+d} ${x+d}", " d d"),
        ("${x:?m} ${x?m} ${empty?m}", "foobarfoo foobarfoo "),
        ("${unset:-${empty:-${x}}}", "foobarfoo"),
        ("${unset:-'a b'\"$x\"}", "a bfoobarfoo"),
        (r"${unset:-\}}", "}"),
        ("${unset:-}", ""),
        # beginnings and ends
        ("${x#f*o} ${x##f*o} ${x#o}", "obarfoo  foobarfoo"),
        ("${path%.*} ${path%%.*} ${path##*/} ${path#*/}", "/a/b.tar /a/b b.tar.gz a/b.tar.gz"),
        ("${x#$y} ${x#?} ${x#} ${x%} ${x#*}", "obarfoo oobarfoo foobarfoo foobarfoo foobarfoo"),
        (r"${stars%%\**\*} ${stars#*\*}", "a **yy*"),
        ("${n%.*}", "l1\nl2"),
        ("${n##*l}", "2.x"),
        ("${unset#a}", ""),
        # replacing
        ("${x/o/0} ${x//o/0} ${x//o} ${x/zz/y}", "error"),
        ("${x/o/0} ${x//o/0} ${x//o/} ${x/zz/y}", "f0obarfoo f00barf00 fbarf foobarfoo"),
        ("${x/f*b/-} ${x//f?o/-} ${x/*/-}", "-arfoo -bar- -"),
        (r"${path//\//_}", "_a_b.tar.gz"),
        (r"${path//\//\/}", r"\/a\/b.tar.gz"),
        ("${x//$y/$empty}${unset/a/b}", "obaro"),
        # errors
        ("${", "error"),
        ("${x", "error"),
        ("${}", "error"),
        ("${{x}}", "error"),
        ("${:x}", "error"),
        ("${x:", "error"),
        ("${x:o}", "error"),
        ("${x=o}", "error"),
        ("${x:-a", "error"),
        ("${x/a}", "error"),
        ("${x/a/b", "error"),
        (r"${x#\a}", "error"),
        ("'open", "error"),
        ('"open', "error"),
        ("${unset?}", "error"),
        ("${empty:?}", "error"),
    ],
)
def test_a_text_becomes(text, expected):
    if expected == "error":
        with pytest.raises(DockerfileError, match="failed to process"):
            expand(text, ENV)
    else:
        assert expand(text, ENV).text == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${u:?no way $y}", 'failed to process "${u:?no way $y}": u: no way fo'),
        ("${u?}", 'failed to process "${u?}": u: is not allowed to be unset'),
        ("${empty:?}", 'failed to process "${empty:?}": empty: is not allowed to be empty'),
        ("${x", "failed to process \"${x\": syntax error: missing '}'"),
        ("${x:-a", "failed to process \"${x:-a\": syntax error: missing '}'"),
        ("${x//a}", "failed to process \"${x//a}\": syntax error: missing '/' in ${}"),
        ("${}", 'failed to process "${}": syntax error: bad substitution'),
        ("${x:@}", 'failed to process "${x:@}": unsupported modifier (:@) in substitution'),
        ("'a", 'failed to process "\'a": unexpected end of statement while looking for matching single-quote'),
        ('"a', 'failed to process "\\"a": unexpected end of statement while looking for matching double-quote'),
        (r"${x%\a}", r'failed to process "${x%\\a}": invalid pattern (\a) in substitution: invalid escape ' + r"'\a'"),
    ],
)
def test_what_is_wrong_is_said_in_buildkits_words(text, message):
    with pytest.raises(DockerfileError) as caught:
        expand(text, ENV)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc ", ("a", "b", "c")),
        ("'a b' c\"d e\"f", ("a b", "cd ef")),
        ("$two", ("a", "b")),
        ('"$two"', ("a  b",)),
        ("x${two}y", ("xa", "by")),
        ("$empty", ()),
        ("''", ()),
        (r"a\ b c", ("a b", "c")),
        ("${unset:-a b}", ("a", "b")),
        ("'a'$two'b'", ("aa", "bb")),
    ],
)
def test_a_text_is_split_where_white_space_is_not_quoted(text, words):
    assert expand(text, ENV).words == words


def test_the_escape_character_is_the_one_of_the_dockerfile():
    assert expand(r"C:\dir `$x `` $y", ENV, escape="`").text == r"C:\dir $x ` fo"
    assert expand('"a`"b"', ENV, escape="`").text == 'a"b'
    assert expand("${stars#*`*}", ENV, escape="`").text == "**yy*"


def test_quotes_may_be_ordinary_letters_and_may_stay():
    assert expand('it\'s "$y" \\$y', ENV, quotes=False).text == 'it\'s "fo" $y'
    kept = expand("'a b' \"$y\" $u ${v:-w} \\$", ENV, raw_quotes=True, raw_escapes=True, keep_unset=True)
    assert kept.text == "'a b' \"fo\" $u ${v:-w} \\$"
    assert kept.words == ("'a b'", '"fo"', "$u", "${v:-w}", "\\$")


def test_it_is_told_which_variables_were_used_which_are_not_set_and_which_of_those_were_not_provided_for():
    told = expand("$x ${u} ${v:-$w} ${y:+$x} ${t?}".replace(" ${t?}", ""), ENV)
    assert told.used == {"x", "y"}
    assert told.unset == {"u", "v", "w"}
    assert told.missed == {"u", "w"}
    assert expand("${t:+a}", ENV).missed == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 1_000_000,
        '"' * 1_000_001,
        "'" * 1_000_001,
        "$" * 1_000_000,
        "a " * 500_000,
        "${a:-" * 200_000,
        "${x/" * 100_000,
        "${x//" * 50 + "}" * 50,
        "$x" * 300_000,
        '"$x' * 100_000,
    ],
    ids=range(10),
)
def test_a_megabyte_is_read_in_linear_time(text):
    """Quadratic time would not end within that of a test."""
    for keep in (False, True):
        try:
            told = expand(text, ENV, raw_quotes=keep, keep_unset=keep).text
        except DockerfileError as error:
            told = error.message
        assert len(told) < 3 * len(text)
    assert len(split_quoted(text)) <= len(text)


def test_what_grows_with_each_use_has_an_end():
    env = {"a": "x" * 100_000}
    with pytest.raises(DockerfileError, match=f"longer than {MAX_EXPANDED} characters"):
        expand("$a" * 11, env)
    with pytest.raises(DockerfileError, match=f"longer than {MAX_EXPANDED} characters"):
        expand("${b//x/$a}", env | {"b": "x" * 100})


def test_patterns_take_bounded_time():
    env = {"a": "a" * 100_000}
    assert expand("${a%%" + "*a" * 50 + "*b}", env).text == env["a"]
    assert expand("${a//" + "*a" * 50 + "b/x}", env).text == env["a"]
    with pytest.raises(DockerfileError, match="takes too long"):
        expand("${a#" + "?" * 1001 + "}", env)
    with pytest.raises(DockerfileError, match="takes too long"):
        expand("${a#" + "?" * 900 + "}", env)


def test_nesting_has_an_end():
    assert expand("${u:-" * 50 + "x" + "}" * 50, {}).text == "x"
    with pytest.raises(DockerfileError, match="nested more than 50 times"):
        expand("${u:-" * 51 + "x" + "}" * 51, {})


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("a \"b c\" d='e f' g\\ h", ["a", '"b c"', "d='e f'", "g\\ h"]),
        ('a="x\\" y" b', ['a="x\\" y"', "b"]),
        ("a='x\\' b", ["a='x\\'", "b"]),
        ("a='open b", ["a='open b"]),
        ("a \\", ["a"]),
        ('"" b', ['""', "b"]),
        ("   ", []),
    ],
)
def test_words_with_their_quotes(rest, words):
    assert split_quoted(rest) == words


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('["a", "b c"]', ("a", "b c")),
        (" [] ", ()),
        ('["\\u0041\\n"]', ("A\n",)),
        ("['a']", None),
        ('["a",]', None),
        ('["a"] b', None),
        ("[ -f x ]", None),
        ('"a"', None),
        ("a", None),
        ("[" * 100_000, None),
    ],
    ids=str.split("list empty escapes single comma tail test string word deep"),
)
def test_the_json_form_is_told_from_the_shell_form(rest, words):
    assert json_words(rest) == words


@pytest.mark.parametrize("rest", ["[1]", '["a", null]', '[["a"]]', "[{}]"])
def test_a_list_of_other_things_than_strings_is_refused(rest):
    with pytest.raises(DockerfileError, match="arrays must be comprised of strings only"):
        json_words(rest)
