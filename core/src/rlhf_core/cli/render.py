"""The two renderings of a component's description: for the terminal, and as a page of the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from .describe import Description, Options


def markdown(component: Description) -> str:
    """The page of a component."""
    lines = [f"# {component.kind} {component.name}", prose(component.summary)]
    lines.append("\n".join(f"- {fact}: {words}" for fact, words in component.facts.items()))
    lines.append(prose(component.about))
    for level, table in zip(("##", *["###"] * len(component.tables)), component.tables, strict=False):
        lines += [f"{level} {'Options' if level == '##' else table.title}", prose(table.about), rows(table)]
    lines += ["## Example", f"```yaml\n{component.example}```"]
    return "\n\n".join(line for line in lines if line) + "\n"


def rows(table: Options) -> str:
    found = [
        [f"`{o.name}`", o.type.replace(" | ", " or "), o.bounds, o.default and f"`{o.default}`", o.meaning]
        for o in table.options
    ]
    head = ["| option | type | bounds | default | meaning |", "|---|---|---|---|---|"]
    return "\n".join(head + ["| " + " | ".join(map(cell, row)) + " |" for row in found]) if found else "None."


def cell(text: str) -> str:
    """Text of a docstring as a cell of a table. Code with a bar becomes HTML: escapes inside differ."""
    text = re.sub(r"(`+)([^`]*\|[^`]*)\1", lambda code: f"<code>{escape(code[2]).replace('|', '&#124;')}</code>", text)
    parts = re.split(r"(<code>.*?</code>)", " ".join(text.split()))
    parts[::2] = [prose(part).replace("|", "\\|") for part in parts[::2]]
    return "".join(parts)


def prose(text: str) -> str:
    """Text of a docstring as Markdown: no tags, and papers are links. Code stays as it is."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.S)
    for i in range(0, len(parts), 2):
        escaped = parts[i].replace("<", "&lt;").replace("[", "\\[")
        parts[i] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped)
    return "".join(parts)


def show(component: Description) -> None:
    """Print it. Each option takes two lines or more: type, bounds and default; then what it means."""
    from rich import markup
    from rich.table import Table

    from .tables import console

    console.print(f"[bold]{component.kind} {component.name}[/bold]: {markup.escape(component.summary)}")
    facts = Table.grid(padding=(0, 2))
    for fact, words in component.facts.items():
        facts.add_row(f"[dim]{fact}[/dim]", markup.escape(words.replace("`", "")))
    console.print(facts)
    for paragraph in _paragraphs(component.about):
        console.print(f"\n{markup.escape(paragraph)}")
    for i, table in enumerate(component.tables):
        console.print(f"\n[bold]{table.title if i else 'options'}[/bold]")
        for paragraph in _paragraphs(table.about):
            console.print(markup.escape(paragraph))
        grid = Table.grid(padding=(0, 2))
        for o in table.options:
            default = o.default if o.default == "required" else o.default and f"default {o.default}"
            said = ", ".join(filter(None, [o.type, o.bounds, default]))
            grid.add_row(
                f"[green]{o.name}[/green]", f"[dim]{markup.escape(said)}[/dim]\n{markup.escape(o.meaning)}".strip()
            )
        console.print(grid)
    console.print("\n[bold]in registry.yaml[/bold]")
    console.print(component.example.rstrip(), markup=False, soft_wrap=True)


def _paragraphs(docstring: str) -> Iterator[str]:
    """Each paragraph and each entry of a list on one line, to be wrapped anew; rich.markdown takes 50 ms to import."""
    for block in re.split(r"\n\s*\n", docstring):
        yield from (" ".join(entry.split()) for entry in re.split(r"\n(?=- )", block) if entry.strip())
