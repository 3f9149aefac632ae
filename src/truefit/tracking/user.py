"""Who this user is, to MLflow."""

from truefit.core.redaction import redacted
from truefit.tracking.names import USER_TAG


def current_user() -> str | None:
    """Return the name that a run records which begins here; None where the machine has none, as in some containers."""
    from mlflow.tracking.context.registry import resolve_tags

    user = resolve_tags().get(USER_TAG)
    return None if user is None else redacted(user)
