// Drive PyTorch's own CUDA caching allocator (libc10_cuda.so) with a list of allocations and frees, and print its peaks.
// Standard input: "a NUMBER BYTES" allocates, "f NUMBER" frees.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <unordered_map>

int main() {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  allocator::init(1);
  std::unordered_map<long, void*> blocks;
  char what = 0;
  long number = 0, index = 0, failed = -1;
  size_t bytes = 0;
  while (std::scanf(" %c %ld", &what, &number) == 2) {
    if (what == 'a') {
      if (std::scanf("%zu", &bytes) != 1) return 2;
      try {
        blocks[number] = allocator::raw_alloc_with_stream(bytes, nullptr);
      } catch (const c10::OutOfMemoryError&) {
        failed = index;
        break;
      }
    } else {
      allocator::raw_delete(blocks.at(number));
      blocks.erase(number);
    }
    ++index;
  }
  auto stats = allocator::getDeviceStats(0);
  std::printf("{\"failed\": %ld, \"peak_allocated\": %ld, \"peak_reserved\": %ld, \"allocated\": %ld, \"reserved\": %ld}\n",
              failed, stats.allocated_bytes[0].peak, stats.reserved_bytes[0].peak, stats.allocated_bytes[0].current,
              stats.reserved_bytes[0].current);
  std::fflush(stdout);
  std::_Exit(0);  // no destructors: the stand-in for CUDA has nothing to give back
}
