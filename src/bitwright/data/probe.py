"""What models are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.data.pictures import Picture
from bitwright.data.samples import Sample


@dataclass(frozen=True)
class Probe:
    """Samples, each of its own length; the domain of each where the text names domains; and pictures to be asked about.

    Domains among ``controls`` are measured beside the others and counted in no total.
    """

    samples: tuple[Sample, ...]
    domains: tuple[str, ...] = ()  # of each
    controls: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    prompts: tuple[Sample, ...] = ()  # of the pictures' questions, up to where the answer begins

    @property
    def counted(self) -> Probe:
        """What the total counts: no controls, and nobody is asked anything."""
        left = [i for i, domain in enumerate(self.domains) if domain not in self.controls]
        if not self.domains:
            return Probe(self.samples)
        return Probe(tuple(self.samples[i] for i in left), tuple(self.domains[i] for i in left))

    @classmethod
    def of(cls, samples: Sequence[Sample], domains: tuple[str, ...] = ()) -> Probe:
        return cls(tuple(samples), domains)
