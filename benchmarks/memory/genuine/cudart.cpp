// A CUDA runtime without a GPU: just enough for libc10_cuda.so to allocate. Addresses are counted, never touched.
// The device has RATC_CAP bytes in all; what is beyond is refused as a full card refuses it.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {
std::map<uintptr_t, size_t> segments;
std::map<unsigned long long, size_t> pages;
size_t used = 0;
uintptr_t next_address = 1ULL << 40;
uintptr_t next_range = 1ULL << 44;
unsigned long long next_page = 1;

size_t total() {
  const char* text = std::getenv("RATC_CAP");
  return text ? std::strtoull(text, nullptr, 10) : (1ULL << 46);
}

CUresult reserve(CUdeviceptr* out, size_t size, size_t, CUdeviceptr, unsigned long long) {
  *out = next_range;
  next_range += size + (1ULL << 30);
  return CUDA_SUCCESS;
}
CUresult create(CUmemGenericAllocationHandle* out, size_t size, const CUmemAllocationProp*, unsigned long long) {
  if (used + size > total()) return CUDA_ERROR_OUT_OF_MEMORY;
  used += size;
  pages[*out = next_page++] = size;
  return CUDA_SUCCESS;
}
CUresult release(CUmemGenericAllocationHandle handle) {
  used -= pages.at(handle);
  pages.erase(handle);
  return CUDA_SUCCESS;
}
CUresult nothing() { return CUDA_SUCCESS; }
}  // namespace

extern "C" {
cudaError_t cudaMalloc(void** out, size_t size) {
  if (used + size > total()) return cudaErrorMemoryAllocation;
  used += size;
  segments[next_address] = size;
  *out = reinterpret_cast<void*>(next_address);
  next_address += size + (2 << 20);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  auto found = segments.find(reinterpret_cast<uintptr_t>(pointer));
  used -= found->second;
  segments.erase(found);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* out, int) {
  std::memset(out, 0, sizeof *out);
  out->totalGlobalMem = total();
  out->major = 8;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *all = total();
  *free = *all - used;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* out) { return *out = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* out) { return *out = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* out) { return *out = 12080, cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* out) {
  return *out = cudaStreamCaptureStatusNone, cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "error"; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** out, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  std::string name = symbol;
  *out = name == "cuMemAddressReserve" ? reinterpret_cast<void*>(&reserve)
         : name == "cuMemCreate"       ? reinterpret_cast<void*>(&create)
         : name == "cuMemRelease"      ? reinterpret_cast<void*>(&release)
                                       : reinterpret_cast<void*>(&nothing);
  if (found) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** out, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* found) {
  return cudaGetDriverEntryPointByVersion(symbol, out, 0, flags, found);
}

}
