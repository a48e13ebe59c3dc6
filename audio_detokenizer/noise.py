"""Random numbers of the detokenizer: reproducible per row, for any batch, chunking and device.

Every row (or stream) draws two seeds from its caller's generator. From then on it uses two generators of its own, one
for the flow and one for the vocoder. They are on the CPU, so that a seed gives the same speech on every device.
"""

import torch


def spawn_generators(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """`count` independent CPU generators seeded from `generator`; without one, from the system. No global state."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class FrameNoise:
    """Standard normal numbers that belong to absolute frames, `width` to a frame.

    They are drawn in blocks of a fixed size, so that frame t gets the same numbers however the ranges are cut.
    Ranges may only move forward: blocks that end before a range are dropped.
    """

    block_frames = 64

    def __init__(self, generator: torch.Generator, width: int):
        self.generator = generator
        self.width = width
        self.blocks: list[torch.Tensor] = []
        self.num_dropped = 0

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Frames start to stop -> [stop - start, width] float32 on the CPU.

        Raises:
            ValueError: `start` lies before the start of an earlier range.
        """
        while self.num_dropped < start // self.block_frames:
            self.blocks = self.blocks[1:] if self.blocks else self._draw()[1:]
            self.num_dropped += 1
        first = self.num_dropped * self.block_frames
        if start < first:
            raise ValueError(f"frame {start} was dropped: the first one kept is {first}; ask for frames in order")
        while first + len(self.blocks) * self.block_frames < stop:
            self.blocks += self._draw()
        if start == stop:
            return torch.empty(0, self.width)
        return torch.cat(self.blocks)[start - first : stop - first]

    def _draw(self) -> list[torch.Tensor]:
        return [torch.randn(self.block_frames, self.width, generator=self.generator)]
