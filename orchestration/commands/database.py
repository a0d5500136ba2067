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
    """Start the embedded PostgreSQL and leave it running, for psql and your own programs."""
    current = _require_embedded(settings())
    server = embedded_server(current)
    if server.running_port() == current.pg_port:
        say(f"PostgreSQL is already running on {where(current.platform_url)}.")
        return
    current = prepare(current)
    with locked(current.home, "lifecycle db start"):
        server.start()
    say(
        f"PostgreSQL is running on {where(current.platform_url)}; `lifecycle db url` prints its address with the password."
    )


@app.command()
def stop() -> None:
    """Stop the embedded PostgreSQL. Its data is kept."""
    current = _require_embedded(settings())
    user = holder(current.home)
    if user is not None:
        raise LifecycleError(f"PostgreSQL is in use by {user}: `lifecycle down` stops both.")
    server = embedded_server(current)
    if server.process() is None:
        say("PostgreSQL is not running.")
        return
    server.stop()
    say(f"PostgreSQL is stopped. Its data is kept in {current.postgres_dir}.")


@app.command()
def migrate() -> None:
    """Migrate the schemas to this version. Running it again changes nothing."""
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
            f"DATABASE_URL points to {where(current.platform_url)}, which lifecycle neither starts nor stops: "
            "unset it to use the embedded PostgreSQL."
        )
    return current
