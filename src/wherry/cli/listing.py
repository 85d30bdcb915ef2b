"""`--format` and tables of the listing commands.

A Row class has FIELDS: name -> function of the row. HEADERS gives a table's headings, COLUMNS the default ones. The
default table is drawn without the template engine, which therefore need not be imported.
"""

from __future__ import annotations

from wherry.cli.console import Failure, out
from wherry.cli.table import align

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from wherry.cli.template import Template


class Row:
    """One line of a listing; `FIELDS` compute what templates and columns ask for.

    Functions in ARGUMENTS take arguments (`.Label "x"`), and are not part of the JSON form.
    """

    FIELDS: Mapping[str, Callable[[Any], Any]] = {}
    ARGUMENTS: Mapping[str, Callable[..., Any]] = {}
    type_name = "*formatter.Context"

    def get(self, name: str) -> Any:
        if name in self.ARGUMENTS:
            function = self.ARGUMENTS[name]
            return lambda *given: function(self, *given)
        return self.FIELDS[name](self)

    def as_json(self) -> dict[str, Any]:
        return {name: self.FIELDS[name](self) for name in sorted(self.FIELDS)}


class HeaderRow(Row):
    """The headings, in the place of a row."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def get(self, name: str) -> Any:
        if name == "Label":
            return lambda key: key.rsplit(".", 1)[-1].replace("-", " ").replace("_", " ")
        return self.headers.get(name, "<no value>")


def _identity(value: Any, *_: Any) -> Any:
    return value


# In a heading these leave the words as they are.
HEADER_FUNCTIONS: dict[str, Callable[..., Any]] = dict.fromkeys(
    ("json", "split", "title", "lower", "upper", "pad", "truncate"), _identity
)
HEADER_FUNCTIONS["join"] = _identity


def uses_field(form: str, field: str) -> bool:
    """Does the template mention `.Field`?"""
    return f".{field}" in form


def compile_template(form: str) -> Template:
    """A user's template, with `\\t` and `\\n` for tab and newline; Failure 64 when it cannot be parsed."""
    from wherry.cli.template import TemplateError, parse

    try:
        return parse(form.replace("\\t", "\t").replace("\\n", "\n"))
    except TemplateError as exc:
        raise Failure(f"template parsing error: {exc}", 64) from None


def render_row(template: Template, row: object, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
    from wherry.cli.template import TemplateError

    try:
        return template.render(row, functions)
    except TemplateError as exc:
        raise Failure(f"failed to execute template: {exc}") from None


def table_text(rows: Sequence[Row], columns: Sequence[str], headers: Mapping[str, str], *, heading: bool = True) -> str:
    lines = ["\t".join(headers[column] for column in columns)] if heading else []
    for row in rows:
        fields = row.FIELDS
        lines.append("\t".join([str(fields[column](row)) for column in columns]))
    return align(lines)


def print_rows(form: str, rows: Sequence[Row], columns: Sequence[str], headers: Mapping[str, str]) -> None:
    """Print `rows` by `form`: "" or "table", "table TEMPLATE", "json", or a template for each."""
    out(format_rows(form, rows, columns, headers))


def format_rows(form: str, rows: Sequence[Row], columns: Sequence[str], headers: Mapping[str, str]) -> str:
    if form in ("", "table"):
        return table_text(rows, columns, headers)
    if form == "json":
        from wherry.client.jsontext import dumps

        return "".join(dumps(row.as_json(), html=True) + "\n" for row in rows)
    if form.startswith("table"):
        template = compile_template(form[5:].strip(" "))
        heading = render_row(template, HeaderRow(headers), HEADER_FUNCTIONS)
        lines = [heading, *(render_row(template, row) for row in rows)]
        return align([part for text in lines for part in text.split("\n")])
    template = compile_template(form)
    return "".join(render_row(template, row) + "\n" for row in rows)


def filters_json(pairs: Sequence[str]) -> str | None:
    """`name=value` pairs as the API's filters; None when there are none."""
    if not pairs:
        return None
    filters: dict[str, dict[str, bool]] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        filters.setdefault(name, {})[value] = True
    from wherry.client.jsontext import dumps

    return dumps(filters, sort=True)


def join_labels(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) if labels else ""


def short_id(identifier: str) -> str:
    """Twelve digits, without the algorithm."""
    return identifier.partition(":")[2][:12] if ":" in identifier else identifier[:12]


def ellipsis(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 1 else text[:width]


FORMAT_HELP = (
    "Format output using a custom template:\n"
    "'table':            Print output in table format with column headers (default)\n"
    "'table TEMPLATE':   Print output in table format using the given Go template\n"
    "'json':             Print in JSON format\n"
    "'TEMPLATE':         Print output using the given Go template"
)
INSPECT_FORMAT_HELP = (
    "Format output using a custom template:\n"
    "'json':             Print in JSON format\n"
    "'TEMPLATE':         Print output using the given Go template"
)
