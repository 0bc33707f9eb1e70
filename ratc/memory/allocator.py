"""A replay of PyTorch's CUDA caching allocator: its reserved bytes, and whether it runs out, at a cap in bytes.

Follows `DeviceCachingAllocator` in c10/cuda/CUDACachingAllocator.cpp; each rule names the function it comes from. No
CUDA graphs, no blocks that several streams use at once, the default settings of `PYTORCH_ALLOC_CONF` (no
`max_split_size_mb`, no garbage collection, no power-of-two rounding) apart from `expandable_segments`. Addresses count,
for among free blocks of one size the allocator takes the lowest: they follow the driver's (`_place`), but none is used
twice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import chain

#: kMinBlockSize, kSmallSize, kSmallBuffer, kLargeBuffer, kMinLargeAlloc and kRoundLarge (c10/core/AllocatorConfig.h),
#: bytes.
MIN_BLOCK, SMALL, SMALL_BUFFER, LARGE_BUFFER = 512, 1 << 20, 2 << 20, 20 << 20
MIN_LARGE, ROUND_LARGE = 10 << 20, 2 << 20
#: A free block is one integer, size << SHIFT | address: integers sort as `BlockComparatorSize` does, by size, then
#: address. An exbibyte of addresses: a step that is far too large for any card is replayed too, to find its need.
SHIFT, MASK = 60, (1 << 60) - 1
#: Bytes of address space that the driver reserves at a time.
RESERVATION = 32 << 20


class OutOfMemory(Exception):
    """The allocator is at its cap, has given back all cached segments, and still has no room for a segment.

    ``wanted_bytes`` is the size of that segment, ``reserved_bytes`` the bytes reserved at that moment.
    """

    def __init__(self, wanted_bytes: int, reserved_bytes: int) -> None:
        super().__init__(f"{wanted_bytes} bytes on top of {reserved_bytes}")
        self.wanted_bytes, self.reserved_bytes = wanted_bytes, reserved_bytes


def rounded(size: int) -> int:
    """Return the bytes of a request, rounded up to a multiple of 512; 0 for 0: `round_size`."""
    return (size + MIN_BLOCK - 1) & -MIN_BLOCK


def segment_size(size: int) -> int:
    """Return the bytes of the segment that the driver is asked for if no cached block serves a rounded request of
    ``size`` bytes: `get_allocation_size`.
    """
    if size <= SMALL:
        return SMALL_BUFFER
    return LARGE_BUFFER if size < MIN_LARGE else (size + ROUND_LARGE - 1) & -ROUND_LARGE


class Allocator:
    """Segments, cached blocks and peaks; all sizes in bytes.

    ``cap`` bounds the reserved bytes (None: no bound), as the card's free memory or `set_per_process_memory_fraction`
    does.
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.retries = 0
        self.small: list[int] = []
        self.large: list[int] = []
        self.used: dict[int, int] = {}
        self.segments: dict[int, int] = {}
        # The pools of streams other than the default one, and the pool of each of their blocks in use.
        self._streams: dict[int, tuple[list[int], list[int]]] = {}
        self._elsewhere: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._bottom = MASK >> 2
        self._left: list[tuple[int, int]] = []
        self._split_from = SMALL + 1

    def malloc(self, size: int, stream: int = 0) -> int:
        """The address of a new block of at least ``size`` bytes (more than 0): `malloc`.

        Blocks that were cached on one ``stream`` serve no other one (`BlockComparatorSize`, `get_free_block`).

        Raises OutOfMemory at the cap. The smallest cached block that is large enough is taken (`get_free_block`), and
        split if the rest is at least 512 bytes in the small pool, more than 1 MiB in the large one (`should_split`).
        """
        size = (size + 511) & -512
        small = size <= SMALL
        free = self._pools(stream)[not small] if stream else self.small if small else self.large
        at = bisect_left(free, size << SHIFT)
        if at < len(free):
            at = self._choose(free, at)
            key = free.pop(at)
            start, have = key & MASK, key >> SHIFT
            del self._sizes[start], self._starts[start + have]
        else:
            start, have = self._grow(size, free, small)
        rest = have - size
        if rest >= (MIN_BLOCK if small else self._split_from):
            self._cache(free, start + size, rest)
            have = size
        self.used[start] = have
        if stream:
            self._elsewhere[start] = free
        self.allocated += have
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return start

    def free(self, start: int) -> None:
        """Give a block back to its pool, merged with its free neighbours: `free_block`, `try_merge_blocks`.

        Raises KeyError for an address that is not in use.
        """
        size = self.used.pop(start)
        self.allocated -= size
        # A block of the large pool is never as small as 1 MiB: its request was larger.
        free = self.small if size <= SMALL else self.large
        if self._elsewhere:
            free = self._elsewhere.pop(start, free)
        after = self._sizes.get(start + size)
        if after is not None:
            self._take(free, start + size, after)
            size += after
        before = self._starts.get(start)
        if before is not None:
            self._take(free, before, start - before)
            size += start - before
            start = before
        self._cache(free, start, size)

    def _pools(self, stream: int) -> tuple[list[int], list[int]]:
        """The small and the large pool of a stream."""
        if not stream:
            return self.small, self.large
        return self._streams.setdefault(stream, ([], []))

    def _cache(self, free: list[int], start: int, size: int) -> None:
        insort(free, size << SHIFT | start)
        self._sizes[start] = size
        self._starts[start + size] = start

    def _take(self, free: list[int], start: int, size: int) -> None:
        del free[bisect_left(free, size << SHIFT | start)]
        del self._sizes[start], self._starts[start + size]

    def _choose(self, free: list[int], at: int) -> int:
        return at

    def _grow(self, size: int, free: list[int], small: bool) -> tuple[int, int]:
        """A new segment: `alloc_block`; if it fails, `release_cached_blocks` and once more."""
        want = segment_size(size)
        if self.cap is not None and self.reserved + want > self.cap:
            self.retries += 1
            self.release_cached()
            if self.reserved + want > self.cap:
                raise OutOfMemory(want, self.reserved)
        start = self._place(want)
        self.segments[start] = want
        self._reserve(want)
        return start, want

    def _place(self, size: int) -> int:
        """An address for a segment, as `cudaMalloc` gives them: the driver reserves address space downwards, in
        multiples of 32 MiB, and first fills the space that an earlier segment left, lowest address first.

        Found in the events of 51 cases on an H200 (benchmarks/memory/data): replayed at these addresses, the peak of
        reserved bytes is the measured one to 0.1 % in all but one (1.1 %); at rising addresses it is up to 5.6 % off.
        """
        room = size + MIN_BLOCK  # a gap, so that blocks of two segments are not neighbours
        for index in range(len(self._left) - 1, -1, -1):
            start, end = self._left[index]
            if end - start >= room:
                self._left[index] = start + room, end
                return start
        left = -size % RESERVATION  # has room for as many of the smallest segments, each with its gap
        end = self._bottom
        start = self._bottom = end - room - left - left // SMALL_BUFFER * MIN_BLOCK
        if left:
            self._left.append((start + room, end))
        return start

    def _reserve(self, size: int) -> None:
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def release_cached(self) -> None:
        """Give back every segment that is one free block: `release_blocks`, which keeps split segments."""
        for free in (self.large, self.small, *chain(*self._streams.values())):
            for key in list(free):
                start, size = key & MASK, key >> SHIFT
                if self.segments.get(start) == size:
                    self._take(free, start, size)
                    del self.segments[start]
                    self.reserved -= size


class ExpandableAllocator(Allocator):
    """The allocator with `expandable_segments:True`: its segments grow in pages of 2 MiB (small pool) or 20 MiB (large
    pool).
    """

    def __init__(self, cap: int | None = None) -> None:
        super().__init__(cap)
        self._split_from = MIN_BLOCK
        self._top = 0
        # A segment's address space is 9/8 of the card's memory, taken to be the cap; start -> end. `_unmapped`, by the
        # pool's identity, are the ranges without memory behind them.
        self.space = (cap if cap is not None else MASK >> 6) * 9 // 8
        self._unmapped: dict[int, dict[int, int]] = {id(self.small): {}, id(self.large): {}}

    def _pools(self, stream: int) -> tuple[list[int], list[int]]:
        pools = super()._pools(stream)
        for free in pools:
            self._unmapped.setdefault(id(free), {})
        return pools

    def _choose(self, free: list[int], at: int) -> int:
        """`get_free_block` counts the address space behind a block as part of it, so that the tail is taken last."""

        ranges = self._unmapped[id(free)]

        def room(key: int) -> int:
            end = (key & MASK) + (key >> SHIFT)
            return (key >> SHIFT) + ranges.get(end, end) - end

        while at + 1 < len(free) and room(free[at + 1]) < room(free[at]):
            at += 1
        return at

    def _grow(self, size: int, free: list[int], small: bool) -> tuple[int, int]:
        for retry in (False, True):
            # A request larger than the card is larger than a segment's address space too.
            found = self._expand(size, free, small) if self.cap is None or size <= self.cap else None
            if found:
                return found
            if not retry:
                self.retries += 1
                self.release_cached()
        raise OutOfMemory(segment_size(size), self.reserved)

    def _expand(self, size: int, free: list[int], small: bool) -> tuple[int, int] | None:
        """`try_allocate_expandable_block`: map pages at the lowest address that fits the request; None at the cap."""
        ranges, page = self._unmapped[id(free)], SMALL_BUFFER if small else LARGE_BUFFER
        start = self._lowest(ranges, size, page)
        have = self._sizes.get(start, 0)
        if have:
            self._take(free, start, have)
        while have < size:
            at = start + have
            end = ranges[at]
            length = min(end - at, -(-(size - have) // page) * page)
            if self.cap is not None and self.reserved + length > self.cap:
                if have:
                    self._cache(free, start, have)
                return None
            del ranges[at]
            if at + length < end:
                ranges[at + length] = end
            self._reserve(length)
            have += length
            behind = self._sizes.get(start + have)
            if behind is not None:
                self._take(free, start + have, behind)
                have += behind
        return start, have

    def _lowest(self, ranges: dict[int, int], size: int, page: int) -> int:
        """`find_expandable_block`: the lowest address with room in free and unmapped neighbours together; else that of
        a new segment.
        """
        for start, end in sorted(ranges.items()):
            first = self._starts.get(start, start)
            while end - first < size and (end in self._sizes or end in ranges):
                end = ranges[end] if end in ranges else end + self._sizes[end]
            if end - first >= size:
                return first
        first = self._top
        end = first + -(-self.space // page) * page
        self.segments[first] = end - first
        ranges[first] = end
        # The next starts on a page of either pool, apart from this one.
        self._top = (end // LARGE_BUFFER + 2) * LARGE_BUFFER
        return first

    def release_cached(self) -> None:
        """Unmap the whole pages inside free blocks (`unmap_block`), and forget segments that are left without any."""
        pools = [(self.large, LARGE_BUFFER), (self.small, SMALL_BUFFER)]
        for small, large in self._streams.values():
            pools += [(large, LARGE_BUFFER), (small, SMALL_BUFFER)]
        for free, page in pools:
            ranges = self._unmapped[id(free)]
            for key in list(free):
                start, size = key & MASK, key >> SHIFT
                first, last = -(-start // page) * page, (start + size) // page * page
                if first >= last:
                    continue
                self._take(free, start, size)
                if start < first:
                    self._cache(free, start, first - start)
                if last < start + size:
                    self._cache(free, last, start + size - last)
                self.reserved -= last - first
                self._unmap(ranges, first, last)

    def _unmap(self, ranges: dict[int, int], first: int, last: int) -> None:
        last = ranges.pop(last, last)
        before = next((start for start, end in ranges.items() if end == first), first)
        ranges[before] = last
        if self.segments.get(before) == last - before:
            del ranges[before], self.segments[before]
