"""`lifecycle db …`: the platform's PostgreSQL."""

import typer

from foundation.errors import LifecycleError
from foundation.settings import Settings, settings
from orchestration.commands.console import say
from orchestration.local.databases import database, embedded_server, where
from orchestration.local.home import holder, locked, prepare

app = typer.Typer(no_args_is_help=True, help="The platform's PostgreSQL: start, stop, migrate, url.")


@app.command()
def start() -> None:
    """Start the embedded PostgreSQL and leave it running, for psql and for commands of your own."""
    current = _require_embedded(settings())
    server = embedded_server(current)
    if server.running_port() == current.pg_port:
        say(f"PostgreSQL runs already on {where(current.platform_url)}.")
        return
    current = prepare(current)
    with locked(current.home, "lifecycle db start"):
        server.start()
    say(f"PostgreSQL runs on {where(current.platform_url)}; `lifecycle db url` prints its address with the password.")


@app.command()
def stop() -> None:
    """Stop the embedded PostgreSQL; data is kept."""
    current = _require_embedded(settings())
    held = holder(current.home)
    if held is not None:
        raise LifecycleError(f"PostgreSQL is needed by {held}: `lifecycle down` ends both.")
    server = embedded_server(current)
    if server.process() is None:
        say("PostgreSQL does not run.")
        return
    server.stop()
    say(f"PostgreSQL is stopped. Data stays in {current.postgres_dir}.")


@app.command()
def migrate() -> None:
    """Bring the schemas to this version. Again changes nothing."""
    from foundation.migrate import migrate as migrate_schemas

    current = settings()
    with database(current, "lifecycle db migrate"):
        migrate_schemas(current.platform_url)
        say(f"The schemas on {where(current.platform_url)} are up to date.")


@app.command()
def url() -> None:
    """Print the database's address with its password, for psql and DATABASE_URL."""
    typer.echo(settings().platform_url)


def _require_embedded(current: Settings) -> Settings:
    if not current.embedded:
        raise LifecycleError(
            f"DATABASE_URL names {where(current.platform_url)}, which lifecycle neither starts nor stops: "
            "unset it for the embedded PostgreSQL."
        )
    return current
