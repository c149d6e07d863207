"""Homomorphic aggregation: the server adds ciphertexts, and only a holder of the key can decrypt their sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Aggregation, Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.averaging import clients_of, filled, flattened, of_mean

__all__ = ["HomomorphicAggregation"]

_DEGREE = 8192
"""Degree of the ring's polynomials: ciphertexts hold half as many values, 218 bits of moduli give 128-bit security."""


@dataclass(frozen=True, repr=False)
class HomomorphicAggregation(Defense):
    """Homomorphic encryption (CKKS): the server adds encrypted updates, and clients decrypt only the sum.

    CKKS (Cheon, Kim, Kim and Song 2017, ASIACRYPT, "Homomorphic encryption for arithmetic of approximate numbers"),
    computed by TenSEAL over SEAL (extra ``he``): ring degree 8192, moduli of 60, `scale_bits` and 60 bits, 128-bit
    security. Each client encrypts ``num_samples x``; the mean is the decrypted sum divided by the sum of
    `num_samples`. The variance of its error is ``clients (degree / 2) (1 + 2 degree / 3) / 12``, divided by the square
    of ``2^scale_bits sum(num_samples)``.

    Keys: all clients hold the same secret key, the server holds none.

    Promises that a server without the key sees only ciphertexts (and `num_samples`, in clear). To continue, it gets
    the mean from a client; audits attack this mean. Nothing is promised about the mean, which leaks like an update
    from a larger batch, nor against a client that can read the network traffic. A server that gets the key from any
    client can decrypt every single update.

    Breaks: anyone who sees decryptions together with their ciphertexts can compute the secret key, because the error
    depends on it (Li and Micciancio 2021, EUROCRYPT). Noise added before sharing prevents this, but neither TenSEAL
    nor this class adds any. So the server, which is handed the mean, can compute the key too. Malicious servers also
    break it, as they break `SecAggPlus`.

    Deviates: SEAL draws its own randomness, not from our generator, so two runs differ by the error above.

    Attributes:
        scale_bits: number of bits after the binary point, 20 to 50.

    Raises:
        InputError: if `scale_bits` is out of range. In a round: if the extra ``he`` is not installed, if there are
            fewer than two clients, if only some of them send `num_samples`, or if values are not finite or too large.
    """

    scale_bits: int = shown(40)
    aggregation = Aggregation("encrypted")

    def __post_init__(self) -> None:
        if type(self.scale_bits) is not int or not 20 <= self.scale_bits <= 50:
            raise InputError(f"scale_bits is {self.scale_bits}: it must be a whole number from 20 to 50")

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Return the one mean that the clients decrypt, weighted by `num_samples` (equally if none are sent)."""
        samples = [update.num_samples for update in value]
        if len(value) < 2:
            raise InputError(f"homomorphic aggregation needs two clients or more: there are {len(value)}")
        if (None in samples and any(samples)) or 0 in samples:
            raise InputError(f"num_samples of the clients are {samples}: each must be above 0, or all left out")
        weights = [n or 1 for n in samples]
        total = self._sum([n * flattened(update) for n, update in zip(weights, value, strict=True)])
        mean = filled(total / sum(weights), value[0])
        return [replace(mean, num_samples=None if None in samples else sum(weights))], state

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the mean's precision, which follows from the variance of the encryption error.

        See the class, and `SecAggPlus` for how earlier parts are treated.
        """
        clients = clients_of(sent, plan)
        variance = clients * self._variance / (sent.num_samples or clients) ** 2
        error = {name: torch.full_like(t, min(1 / variance, 1e30)) for name, t in sent.tensors.items()}
        return of_mean(before, clients).then(precision=error)

    @property
    def _variance(self) -> float:
        """The error variance of one value in a fresh ciphertext: rounding by the last modulus, ternary secret key."""
        return _DEGREE / 2 * (1 + 2 * _DEGREE / 3) / 12 / 4**self.scale_bits

    def _sum(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the decrypted sum (size,) of the clients' vectors, one ciphertext at a time."""
        library, clients, server = _keys(self.scale_bits)
        found: list[float] = []
        for parts in _slots(vectors):
            try:
                wire = [library.ckks_vector(clients, part.tolist()).serialize() for part in parts]
            except ValueError as error:
                raise InputError(f"an update cannot be encrypted ({error}): clip it, or lower scale_bits") from None
            total = library.ckks_vector_from(server, wire[0])
            for ciphertext in wire[1:]:
                total += library.ckks_vector_from(server, ciphertext)
            found += library.ckks_vector_from(clients, total.serialize()).decrypt()
        return torch.tensor(found, dtype=torch.float64)


def _slots(vectors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Split all vectors into parts that each fit into one ciphertext."""
    return zip(*(vector.split(_DEGREE // 2) for vector in vectors), strict=True)


@cache
def _keys(scale_bits: int) -> tuple[Any, Any, Any]:
    """Return TenSEAL, the clients' context with the secret key, and the server's without; made once per `scale_bits`.

    Raises:
        InputError: TenSEAL is not installed.
    """
    try:
        import tenseal  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("homomorphic aggregation needs TenSEAL: pip install 'medpfl[he]'") from None
    scheme, bits = tenseal.SCHEME_TYPE.CKKS, [60, scale_bits, 60]
    clients = tenseal.context(scheme, _DEGREE, coeff_mod_bit_sizes=bits, n_threads=1)
    clients.global_scale = 2**scale_bits
    server = clients.copy()
    server.make_context_public()
    return tenseal, clients, server
