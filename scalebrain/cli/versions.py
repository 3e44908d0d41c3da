"""The option that prints versions."""

import click

from scalebrain.report.versions import versions

__all__ = ["print_versions"]


def print_versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print one line a package, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    for name, found in versions().items():
        click.echo(f"{name} {found}")
    ctx.exit()
