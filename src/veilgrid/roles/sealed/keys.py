"""All keys of a sealed day, for runs in which one program plays everybody."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nacl.public import PrivateKey

from veilgrid.machine import NodeId
from veilgrid.roles.sealed.message import Agreement
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer, Signs

SITES: Final = NodeId("sites")
PAYER_NODE: Final = NodeId("payer")


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """One site's own keys: to sign with, and to make salts of commitments from."""

    signer: Signs
    salt_key: Secret[bytes]

    def salt(self, day: bytes, bus: int) -> bytes:
        """Return the salt of a site's commitment on a day [sealed 6.5].

        Sites of one process may have one key: whoever shows one's salt shows no other's.
        """
        own = self.salt_key.reveal_to("own salt")
        return hashlib.sha256(b"sealed salt 2 " + own + bus.to_bytes(4, "big") + day).digest()


@dataclass(frozen=True)
class Keys:
    """All keys of one day in one place: for runs in which one program plays everybody."""

    boxes: tuple[PrivateKey, ...]
    signers: tuple[Signer, ...]
    sites: Mapping[int, SiteKeys]
    site_seeds: Mapping[int, Secret[bytes]]
    payer: Signer

    @classmethod
    def drawn(cls, party_count: int, site_count: int, randomness: Randomness) -> "Keys":
        """Draw fresh keys."""
        draw = randomness.octets
        seeds = {bus: Secret(draw(32)) for bus in range(site_count)}
        return cls(
            tuple(PrivateKey(draw(32)) for _ in range(party_count)),
            tuple(Signer(Secret(draw(32))) for _ in range(party_count)),
            {bus: SiteKeys(Signer(seed), Secret(draw(32))) for bus, seed in seeds.items()},
            seeds,
            Signer(Secret(draw(32))),
        )

    def agreement(self, name: bytes, degree: int, group: NodeId = SITES) -> Agreement:
        """Return the public agreement on these keys."""
        return Agreement(
            name,
            tuple(NodeId(f"party-{place}") for place in range(1, len(self.boxes) + 1)),
            degree,
            tuple(bytes(box.public_key) for box in self.boxes),
            {bus: keys.signer.verify_key for bus, keys in self.sites.items()},
            dict.fromkeys(self.sites, group),
            payer=PAYER_NODE,
            payer_key=self.payer.verify_key,
        )
