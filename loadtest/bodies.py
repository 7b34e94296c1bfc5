"""The bodies of requests, encoded before the run: encoding them within it would cost the load generator its time."""

import msgspec

from loadtest.payloads import Payloads


class Bodies:
    """Bodies of payload rows, by their numbers.

    Args:
        max_body_bytes: the largest body that the service takes.
    """

    def __init__(self, payloads: Payloads, max_body_bytes: int) -> None:
        self._rows = [msgspec.json.encode(row) for row in payloads.rows]
        self._ones = [b'{"features":%b}' % row for row in self._rows]
        self.bad = [msgspec.json.encode({"features": row}) for row in payloads.bad_rows]
        self.too_large = b" " * (max_body_bytes + 1)

    def __len__(self) -> int:
        return len(self._rows)

    def one(self, number: int) -> bytes:
        """For /predict."""
        return self._ones[number]

    def many(self, start: int, n_rows: int) -> bytes:
        """For /predict/batch."""
        return b'{"instances":[%b]}' % b",".join(self._rows[start : start + n_rows])

    def bento(self, start: int, n_rows: int) -> bytes:
        """For BentoML's own API."""
        return b'{"rows":[%b]}' % b",".join(self._rows[start : start + n_rows])
