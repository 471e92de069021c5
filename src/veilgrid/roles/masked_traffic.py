"""What a deployment of the masked and plain ledger schemes would send, counted as it arises."""

from dataclasses import dataclass

ORDERING_OCTETS = 168
"""View, sequence, digest, sender and signature of one ordering message."""


@dataclass
class Traffic:
    """Messages and octets that a deployment would send, counted as they arise."""

    validators: int
    messages: int = 0
    octets: int = 0

    def send(self, size: int, receivers: int = 1) -> None:
        """Count one message to several receivers."""
        self.messages += receivers
        self.octets += size * receivers

    def order(self, size: int) -> None:
        """Count one request to the ledger and its share of agreement on a batch's digest."""
        self.send(size, self.validators)

    def batch(self) -> None:
        """Count agreement on one batch: pre-prepare, prepare, commit between all validators."""
        n = self.validators
        self.send(ORDERING_OCTETS, (n - 1) + (n - 1) * (n - 1) + n * (n - 1))
