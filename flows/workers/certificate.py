"""A key and a certificate for one run: only processes that have them can connect to its Dask scheduler."""

from pathlib import Path

from distributed import Security

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.pem"


# dask-jobqueue writes such files as well (security=True), but deletes them only when Python collects the cluster
# object, after the run; if the run's folder is gone by then, this prints an exception.
def write_certificate(folder: Path) -> None:
    """Writes the key and the certificate to files that only their owner can read."""
    temporary = Security.temporary()
    folder.chmod(0o700)
    for name, content in ((KEY_FILE, temporary.tls_worker_key), (CERTIFICATE_FILE, temporary.tls_worker_cert)):
        path = folder / name
        path.unlink(missing_ok=True)  # left by a run of the same name that was killed
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(content)


def security_of(folder: Path) -> Security:
    """Returns Dask's settings for a run whose key and certificate are in this folder."""
    key, certificate = str(folder / KEY_FILE), str(folder / CERTIFICATE_FILE)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{f"tls_{role}_key": key for role in roles},
        **{f"tls_{role}_cert": certificate for role in roles},
    )
