#!/usr/bin/env bash
# Build `replay`, which drives PyTorch's own CUDA caching allocator without a GPU: build.sh FOLDER
# Needs g++ and pip; fetches the CUDA build of torch (0.9 GB) for its libc10_cuda.so, and CUDA's headers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
torch=${TORCH_VERSION:-2.9.1}
mkdir -p "$1/wheels" && cd "$1"
python -m pip download -q --no-deps -d wheels "torch==$torch" nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-nvcc-cu12==12.8.93
unzip -qo wheels/torch-"$torch"-*.whl 'torch/lib/libc10.so' 'torch/lib/libc10_cuda.so' 'torch/include/c10/*' 'torch/include/torch/headeronly/*'
unzip -qo 'wheels/nvidia_cuda_runtime*.whl' 'nvidia/cuda_runtime/include/*'
unzip -qo 'wheels/nvidia_cuda_nvcc*.whl' 'nvidia/cuda_nvcc/include/*'
# Every function of the CUDA runtime that the library wants and cudart.cpp does not write out succeeds and does nothing.
{
  echo 'extern "C" {'
  nm -D --undefined-only torch/lib/libc10_cuda.so | grep -o 'cuda[A-Za-z_0-9]*@libcudart' | sed 's/@.*//' | sort -u |
    while read -r name; do grep -q " $name(\|\* $name(" "$here/cudart.cpp" || echo "int $name() { return 0; }"; done
  echo '}'
} > rest.cpp
echo 'libcudart.so.12 { global: *; };' > versions
cuda=(-I nvidia/cuda_runtime/include -I nvidia/cuda_nvcc/include)
g++ -shared -fPIC -O1 -w "${cuda[@]}" -Wl,-soname,libcudart.so.12 -Wl,--version-script=versions \
  -o libcudart.so.12 "$here/cudart.cpp" rest.cpp
export LD_LIBRARY_PATH="$PWD:$PWD/torch/lib"
g++ -std=c++17 -O1 -w "${cuda[@]}" -I torch/include -o replay "$here/replay.cpp" \
  -L torch/lib -lc10 -lc10_cuda -L . -l:libcudart.so.12
printf 'a 1 512\n' | ./replay
