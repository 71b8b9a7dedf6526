"""The command line: wires the commands, and ends each with an exit code that says what to do next."""

from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.commands import (
    audit,
    audit_prove,
    audit_restart,
    audit_search,
    backup,
    classes,
    doctor,
    erase,
    feed,
    get,
    grants,
    instance,
    keys,
    keys_change,
    keys_reencrypt,
    keys_rekey,
    kms,
    legal_hold,
    ls,
    poison,
    policy,
    put,
    records,
    records_key,
    restore,
    screen,
    serve,
    status,
    subject,
    verify,
)
from pipeline.commands.exits import HELP, code_of
from pipeline.errors import PipelineError


class Commands(TyperGroup):
    """The commands. Errors of ours become a line and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            _end(error)
        except BaseExceptionGroup as group:
            # What a task group raises; of several errors one is told, and others are its consequence or its like.
            ours, others = group.split(PipelineError)
            if ours is None or others is not None:
                raise
            _end(_first(ours))


def _first(group: BaseExceptionGroup[PipelineError]) -> PipelineError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _end(error: PipelineError) -> None:
    screen.note(f"pipeline: {screen.told(error)}")
    raise typer.Exit(code_of(error))


app = typer.Typer(
    cls=Commands,
    name="pipeline",
    help="Hold contact-centre recordings encrypted, and deliver each to its tenant's own bucket with proof.",
    epilog=HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
instances = typer.Typer(
    help="Add, list, probe and remove instances (tenants).", no_args_is_help=True, rich_markup_mode="markdown"
)
key_commands = typer.Typer(
    help="Data keys, and the KMS keys that they need.", no_args_is_help=True, rich_markup_mode="markdown"
)
grant_commands = typer.Typer(
    help="The grants by which KMS keys are used.", no_args_is_help=True, rich_markup_mode="markdown"
)
policy_commands = typer.Typer(
    help="The policies that an instance needs at AWS.", no_args_is_help=True, rich_markup_mode="markdown"
)
class_commands = typer.Typer(
    help="The classes of data, and the policy of each.", no_args_is_help=True, rich_markup_mode="markdown"
)
record_commands = typer.Typer(
    help="Records of the other classes of data, by the service.", no_args_is_help=True, rich_markup_mode="markdown"
)
subject_commands = typer.Typer(
    help="All that is known of one person.", no_args_is_help=True, rich_markup_mode="markdown"
)
poisons = typer.Typer(
    help="What no retry could help: see it, give it back, remove it.", no_args_is_help=True, rich_markup_mode="markdown"
)
backups = typer.Typer(
    cls=backup.BackupCommands,
    help="Back the store up with its key ring, beside a running service; check and list backups.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
erasures = typer.Typer(
    help="Erase an instance by destroying its data keys, or one recording; with a signed receipt.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
legal_holds = typer.Typer(
    help="What must not be removed, whoever asks: place, lift and list legal holds.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
audits = typer.Typer(
    help="The audit logs: whether they are whole, what is in them, and proofs for others.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

app.command(epilog=serve.EXAMPLE)(serve.serve)
app.command(epilog=put.EXAMPLE)(put.put)
app.command(epilog=feed.EXAMPLE)(feed.feed)
app.command(epilog=ls.EXAMPLE)(ls.ls)
app.command(epilog=status.EXAMPLE)(status.status)
app.command(epilog=get.EXAMPLE)(get.get)
app.command(epilog=verify.EXAMPLE)(verify.verify)
app.add_typer(instances, name="instance")
instances.command("add", epilog=instance.EXAMPLES["add"])(instance.add)
instances.command("list", epilog=instance.EXAMPLES["list"])(instance.list_instances)
instances.command("probe", epilog=instance.EXAMPLES["probe"])(instance.probe)
instances.command("remove", epilog=instance.EXAMPLES["remove"])(instance.remove)
app.add_typer(key_commands, name="keys")
key_commands.command("status", epilog=keys.EXAMPLE)(keys.status)
key_commands.command("change", epilog=keys_change.EXAMPLE)(keys_change.change)
app.add_typer(grant_commands, name="grants")
grant_commands.command("list", epilog=grants.EXAMPLES["list"])(grants.list_grants)
grant_commands.command("create", epilog=grants.EXAMPLES["create"])(grants.create)
grant_commands.command("revoke", epilog=grants.EXAMPLES["revoke"])(grants.revoke)
app.add_typer(policy_commands, name="policy")
policy_commands.command("show", epilog=policy.EXAMPLE)(policy.show)
key_commands.command("rekey", epilog=keys_rekey.EXAMPLE)(keys_rekey.rekey)
key_commands.command("reencrypt", epilog=keys_reencrypt.EXAMPLE)(keys_reencrypt.reencrypt)
app.add_typer(class_commands, name="classes")
class_commands.command("show", epilog=classes.EXAMPLE)(classes.show)
app.add_typer(record_commands, name="records")
record_commands.command("put", epilog=records.EXAMPLES["put"])(records.put)
record_commands.command("get", epilog=records.EXAMPLES["get"])(records.get)
record_commands.command("ls", epilog=records.EXAMPLES["ls"])(records.ls)
record_commands.command("search", epilog=records.EXAMPLES["search"])(records.search)
record_commands.command("delete", epilog=records.EXAMPLES["delete"])(records.delete)
record_commands.command("import", epilog=records.EXAMPLES["import"])(records.import_records)
record_commands.command("sweep", epilog=records.EXAMPLES["sweep"])(records.sweep)
record_commands.command("change-key", epilog=records_key.EXAMPLE)(records_key.change_key)
app.add_typer(subject_commands, name="subject")
subject_commands.command("export", epilog=subject.EXAMPLES["export"])(subject.export)
subject_commands.command("erase", epilog=subject.EXAMPLES["erase"])(subject.erase)
subject_commands.command("opt-out", epilog=subject.EXAMPLES["opt-out"])(subject.opt_out)
app.add_typer(poisons, name="poison")
poisons.command("list", epilog=poison.EXAMPLES["list"])(poison.list_poison)
poisons.command("requeue", epilog=poison.EXAMPLES["requeue"])(poison.requeue)
poisons.command("discard", epilog=poison.EXAMPLES["discard"])(poison.discard)
app.add_typer(backups, name="backup")
backups.command("create", epilog=backup.EXAMPLES["create"])(backup.create)
backups.command("verify", epilog=backup.EXAMPLES["verify"])(backup.verify)
backups.command("list", epilog=backup.EXAMPLES["list"])(backup.list_made)
backups.command("forget", epilog=backup.EXAMPLES["forget"])(backup.forget)
app.command(epilog=restore.EXAMPLE)(restore.restore)
app.add_typer(erasures, name="erase")
erasures.command("instance", epilog=erase.EXAMPLES["instance"])(erase.instance)
erasures.command("recording", epilog=erase.EXAMPLES["recording"])(erase.recording)
app.add_typer(legal_holds, name="legal-hold")
legal_holds.command("add", epilog=legal_hold.EXAMPLES["add"])(legal_hold.add)
legal_holds.command("release", epilog=legal_hold.EXAMPLES["release"])(legal_hold.release)
legal_holds.command("list", epilog=legal_hold.EXAMPLES["list"])(legal_hold.list_holds)
app.add_typer(audits, name="audit")
audits.command("verify", epilog=audit.EXAMPLES["verify"])(audit.verify)
audits.command("search", epilog=audit_search.EXAMPLES["search"])(audit_search.search)
audits.command("prove", epilog=audit_prove.EXAMPLES["prove"])(audit_prove.prove)
audits.command("check-proof", epilog=audit_prove.EXAMPLES["check-proof"])(audit_prove.check_proof)
audits.command("export", epilog=audit_search.EXAMPLES["export"])(audit_search.export)
audits.command("restart", epilog=audit_restart.EXAMPLE)(audit_restart.restart)
audits.command("key", epilog=audit.EXAMPLES["key"])(audit.key)
app.command(epilog=kms.EXAMPLE)(kms.kms)
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)


def main() -> None:
    """Run the command line."""
    app()
