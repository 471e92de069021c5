"""Checkpoints of a replica: sign, collect, take up [ledger 5.1 to 5.3, 8]."""

from veilgrid.ledger._standing import Standing
from veilgrid.ledger.checkpoint import checkpoint_accusation
from veilgrid.ledger.journalled import Stable, Vouched
from veilgrid.ledger.message import Anchored, Certificate, Checkpoint, Diverged, Lineage
from veilgrid.machine import Decide, Effect, Persist


class Stability(Standing):
    """The part of a replica that makes checkpoints stable and follows their configurations."""

    def _vouch(self, sequence: int) -> list[Effect]:
        """Sign the checkpoint at ``sequence``."""
        summary = self.service.summary(self.moments[sequence])
        signature = self._notary.sign(self._signer, "checkpoint", summary)
        vote = Checkpoint(summary, self.me, signature)
        if not self.is_member:
            return []
        certificate = self.checkpoints.add(vote, self.configuration.quorum)
        effects = [Persist(Vouched(vote)), *self._broadcast(vote)]
        return [*effects, *(self._anchor(certificate) if certificate else [])]

    def _on_checkpoint(self, vote: Checkpoint) -> list[Effect]:
        if vote.summary.sequence <= self.window.low or vote.replica == self.me:
            return []
        held = self.checkpoints.held(vote)
        if held is not None and held.summary == vote.summary:
            return []
        key = self._keys.get(vote.replica)
        if not self._notary.check(key, "checkpoint", vote.signature, vote.summary):
            return []
        if held is not None:
            return self._accuse(checkpoint_accusation(held, vote, self.views.view))
        certificate = self.checkpoints.add(vote, self.configuration.quorum)
        return self._anchor(certificate) if certificate else []

    def _anchor(self, certificate: Certificate) -> list[Effect]:
        """Take up a checked certificate: a low watermark, or something to fetch [ledger 5.2]."""
        sequence = certificate.summary.sequence
        if sequence <= self.window.low:
            return []
        if sequence > self.service.sequence:
            self.transfer.aim(Lineage(self.steps, certificate))
            return []
        moment = self.moments.get(sequence)
        if moment is None or self.service.summary(moment) != certificate.summary:
            self.is_halted = True
            return [Decide(Diverged(sequence))]
        self._settle(certificate)
        effects: list[Effect] = [
            Persist(Stable(certificate)),
            Decide(Anchored(Lineage(self.steps, certificate))),
        ]
        return [*effects, *self._resume()]

    def _settle(self, certificate: Certificate) -> None:
        """Move the low watermark; begin the next configuration if this is its boundary."""
        sequence = certificate.summary.sequence
        self.stable = certificate
        self.window.advance(sequence)
        self._written &= self.window.journalled()
        self.checkpoints.forget(sequence)
        self.moments = {s: moment for s, moment in self.moments.items() if s >= sequence}
        if self.transfer.sequence <= sequence:
            self.transfer.target = None
        following = self.moments[sequence].core.configuration
        if following.number > self.configuration.number:
            self.steps = (*self.steps, (certificate, following))
            self._configure(following)
            self._next, self._assigned = sequence + 1, {}
            self._pool = {k: r for k, r in self._pool.items() if k[0] in self._client_keys}
