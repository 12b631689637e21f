"""What was verified, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of the table that explains a verdict.

    Attributes:
        name: the check's stable name, such as ``"tls_key"``.
        outcome: ``"pass"``, ``"fail"`` or ``"skipped"`` (nobody asked for it).
        code: why it failed; None when it did not.
        detail: what was found.
        remedy: what to do when it failed; may be empty.
    """

    name: str
    outcome: str
    code: str | None
    detail: str
    remedy: str


class Report:
    """What the verifier found out about a server. ``print(report)`` shows the table."""

    def __init__(self, document: str, table: str) -> None:
        self._document: dict[str, Any] = json.loads(document)
        self._table = table.rstrip("\n")

    @property
    def verdict(self) -> str:
        """``"trusted"``, or ``"rejected"`` on the report of an AttestationError."""
        return str(self._document["verdict"])

    @property
    def tee(self) -> str | None:
        """The kind of TEE: ``"sgx"``, ``"tdx"`` or ``"sev-snp"``; None when rejected."""
        return self._text("tee")

    @property
    def simulated(self) -> bool:
        """Whether the evidence is simulated, so that nothing at all is protected."""
        return bool(self._get("simulated"))

    @property
    def trust_root(self) -> str | None:
        """The name of the root that the chain of certificates ends in; None when rejected."""
        return self._text("trust_root")

    @property
    def tcb_status(self) -> str | None:
        """The platform's patch level in its maker's words, such as ``"UpToDate"``."""
        return self._text("tcb_status")

    @property
    def advisories(self) -> tuple[str, ...]:
        """The security advisories that apply to the platform."""
        return tuple(self._get("advisories") or ())

    @property
    def measurements(self) -> dict[str, str]:
        """The measurements by name: digests in hexadecimal, numbers in decimal."""
        return dict(self._get("measurements") or {})

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check that was made, also those that passed."""
        return tuple(
            Check(check["name"], check["outcome"], check["code"], check["detail"], check["remedy"])
            for check in self._get("checks") or ()
        )

    @property
    def valid_until(self) -> datetime | None:
        """When the evidence ends, UTC; None when rejected."""
        seconds = self._get("valid_until")
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible values."""
        document: dict[str, Any] = json.loads(self.to_json())
        return document

    def to_json(self) -> str:
        """The report as JSON, for machines."""
        return json.dumps(self._document)

    def __str__(self) -> str:
        return self._table

    def __repr__(self) -> str:
        return f"<blindai.Report {self.verdict} tee={self.tee} simulated={self.simulated}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.to_json(), self._table)

    def _text(self, key: str) -> str | None:
        value = self._get(key)
        return None if value is None else str(value)

    def _get(self, key: str) -> Any:
        return self._document.get(key)
