"""What the parent does before any worker starts: checks what they will need, and tells them what it decided."""

import os
from pathlib import Path

from tabserve import model_store
from tabserve.access.opening import believed_proxies, check_access, say_who_may_ask
from tabserve.access.worker_buckets import make_bucket_file
from tabserve.audit import check_audit_log
from tabserve.prediction_log.opening import usable_url
from tabserve.settings import BadSettingError, Settings, wants_tracing
from tabserve.telemetry import share_metrics, shared_folder
from tabserve.tls import check_tls

# How workers are told which model was chosen where nobody fixed one: they follow the rollout file then.
MODEL_AT_START = "TABSERVE_MODEL_AT_START"


def prepare(
    settings: Settings,
    model: str,
    *,
    is_fixed: bool,
    host: str,
    tls: tuple[str | None, str | None, str | None],
    n_workers: int | str,
) -> None:
    """Checks all that can be checked without serving, and leaves in the environment what workers are to know.

    Args:
        model: the tag to begin with.
        is_fixed: whether it stays that model, whatever the rollout file says.
        host: the address to listen on.
        tls: certificate, key and the key's password, None where there is none.
        n_workers: how many processes serve; `cpu_count` for as many as there are cores.

    Raises:
        BadSettingError, CannotKeepError, NoAuditError: the service would not work; each says what to do.
    """
    check_tracing()
    check_tls(*tls)
    check_access(settings, host)
    say_who_may_ask(settings, host)
    # By itself uvicorn believes every process of this machine who the caller is.
    os.environ["FORWARDED_ALLOW_IPS"] = believed_proxies(settings)
    share_metrics()
    if (buckets := bucket_file()) and n_workers != 1:
        make_bucket_file(buckets)
    os.environ["TABSERVE_MODEL" if is_fixed else MODEL_AT_START] = model
    os.environ["TABSERVE_LOG_URL"] = usable_url(settings, model_store.home())
    check_audit_log(settings, model_store.home())
    # Where scikit-learn serves: processes scale, threads of one batch would fight for the cores of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def bucket_file() -> Path | None:
    """Where the rate limit of several workers is counted."""
    shared = shared_folder()
    return shared / "buckets" if shared else None


def check_tracing() -> None:
    """Whether spans can be sent, where they are wanted.

    Raises:
        BadSettingError: where not.
    """
    if not wants_tracing():
        return
    try:
        from tabserve.tracing import receiver  # here: the exporter is an extra, and takes memory
    except ImportError as error:
        raise BadSettingError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT wants traces, and a package for them is missing ({error.name}); install it "
            "(pip install -r requirements/tracing.txt) or unset the variable"
        ) from error
    receiver.check(os.environ)
